"""The site's handler over a real tiny model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.round import answer
from wardround.core.counting import TRAIN_LOSS, TRAIN_TARGETS, WEIGHT
from wardround.core.errors import BudgetError, ConfigError, InternalError, PolicyError, StorageError
from wardround.core.messages import BEHIND, Request
from wardround.core.packed import Layout, Packed
from wardround.core.plan import Encoding
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.privacy.sums.offers import scale_of
from wardround.training.evaluation import evaluate
from wardround.training.workbench import Workbench

Make = Callable[..., Any]


def test_the_contribution_is_the_weighted_update(bench: Workbench, make: Make) -> None:
    """Decoded and divided by the weight it is after − before, to the ring's quantum."""
    server = make()
    request = server.request()
    reply = answer(request, server.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING, EVALUATION})
    weighted, counters = server.read(request, reply, TRAINING)
    weight = int(counters[WEIGHT])
    update = weighted / weight
    trained = bench.read_adapter().vector.astype(np.float64) - server.initial.vector
    assert weight == 6
    quantum = scale_of(server.site.plan.encoding, 4).quantum
    assert quantum < 1e-8
    np.testing.assert_allclose(update, trained, rtol=0, atol=quantum / weight)
    assert np.abs(update).max() > 1e-3
    assert (reply.local["clipped"], reply.local["shortened_by"]) == (0.0, 1.0)


def test_counters_are_those_of_an_evaluation_of_the_broadcast(bench: Workbench, make: Make) -> None:
    """Validation counters equal `evaluate` on the adapter before training."""
    server = make()
    site, request = server.site, server.request()
    reply = answer(request, site)
    bench.load_adapter(server.initial)
    expected = evaluate(
        bench.model, bench.task, site.plan.task, site.plan.data, site.validation,
        batch_size=32, device=bench.device, tokenizer=bench.tokenizer,
    )  # fmt: skip
    coordinates, counters = server.read(request, reply, EVALUATION)
    assert coordinates.size == 0
    assert set(expected.tensors()) == set(counters.tensors())
    for name, array in expected.tensors().items():
        np.testing.assert_array_equal(counters[name], array)


def test_an_evaluation_alone_contributes_nothing(make: Make, tmp_path: Path, trained: Counter[int]) -> None:
    """No contribution, nothing trained, nothing kept on disk or for another attempt."""
    server = make(optimiser_state="keep")
    reply = answer(server.request(sums=[EVALUATION]), server.site)
    assert (reply.status, set(reply.sums)) == ("ok", {EVALUATION})
    assert not trained
    assert not list(tmp_path.iterdir())
    assert set(server.site.parties.kept) == {EVALUATION}


def test_a_training_alone_scores_nothing(make: Make) -> None:
    """No numerators, and no figure of its own."""
    server = make()
    reply = answer(server.request(sums=[TRAINING]), server.site)
    assert (reply.status, set(reply.sums)) == ("ok", {TRAINING})
    assert not [name for name in reply.local if name.startswith("validation.")]


def poisoned(request: Request) -> Request:
    """A broadcast with one NaN."""
    assert request.broadcast is not None
    vector = request.broadcast.vector.copy()
    vector[3] = np.nan
    return replace(request, broadcast=request.broadcast.with_vector(vector))


def in_another_layout(request: Request) -> Request:
    """The broadcast's numbers under another name."""
    assert request.broadcast is not None
    layout = request.broadcast.layout
    first = layout.tensors[0].model_copy(update={"name": "another"})
    other = Layout(tensors=(first, *layout.tensors[1:]))
    return replace(request, broadcast=Packed(other, request.broadcast.vector))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: replace(r, run_id="other"), "another run"),
        (lambda r: replace(r, plan_digest="f" * 64), "another plan"),
        (lambda r: replace(r, site="other"), "another site"),
        (poisoned, "not finite"),
        (in_another_layout, "another broadcast layout"),
        (lambda r: replace(r, sums={}), "asks for no sum"),
        (lambda r: replace(r, sums={**r.sums, "other": b""}), "or for one that there is not"),
        (lambda r: replace(r, broadcast=None), "has no broadcast"),
        (lambda r: replace(r, exchange=1), "only the first exchange"),
    ],
    ids=[
        "run", "plan", "site", "nan", "layout", "no sum", "unknown sum", "no broadcast", "a later exchange",
    ],
)  # fmt: skip
def test_a_request_outside_the_plan_is_refused(
    make: Make, trained: Counter[int], change: Any, reason: str
) -> None:
    """Refused with its reason, before anything is trained; the next one that is right is answered."""
    server = make()
    reply = answer(change(server.request()), server.site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "bad_request", {})
    assert reason in reply.reason
    assert not trained
    assert answer(server.request(), server.site).status == "ok"


def test_a_site_without_rows_says_so(make: Make) -> None:
    """A failed reply with a code and no data."""
    server = make(rows=0)
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code, set(reply.sums)) == ("failed", "no_rows", {EVALUATION})


def test_a_loss_that_is_not_finite_is_a_named_failure(make: Make, tmp_path: Path) -> None:
    """A learning rate that explodes: the reply names the code, and the site's store stays as it was."""
    server = make(
        learning_rate=1e30,
        steps=6,
        max_grad_norm=None,
        optimiser="sgd",
        optimiser_state="keep",
    )
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code) == ("failed", "non_finite_loss")
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_is_said_and_never_guessed(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped byte in what the site kept is named as such; the path stays at the site, in its log."""
    server = make(optimiser_state="keep")
    answer(server.request(), server.site)
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    reply = answer(server.request(2), server.site)
    assert (reply.status, reply.code, set(reply.sums)) == ("failed", "storage", {EVALUATION})
    assert str(tmp_path) not in reply.reason
    assert str(kept) in caplog.text


def test_the_store_keeps_only_what_a_repeated_round_needs(make: Make, tmp_path: Path) -> None:
    """Files of rounds long past go."""
    server = make(optimiser_state="keep")
    for round in range(1, 6):
        assert answer(server.request(round), server.site).status == "ok"
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["round-00004", "round-00005"]


def test_a_burnt_round_leaves_nothing_that_the_next_one_goes_on_from(make: Make, tmp_path: Path) -> None:
    """The optimiser goes on from the round before it; after a round that counts, from that round."""
    stories = {"burnt": (), "folded": None}
    contributed = {}
    for name, opened in stories.items():
        server = make(optimiser_state="keep")
        for path in tmp_path.iterdir():
            path.unlink()
        assert answer(server.request(1), server.site).status == "ok"
        request = server.request(2) if opened is None else server.request(2, opened=opened)
        reply = answer(request, server.site)
        assert reply.status == "ok"
        assert (tmp_path / "round-00001.safetensors").exists() == (name == "folded")
        contributed[name], _ = server.read(request, reply, TRAINING)
    assert not np.array_equal(contributed["burnt"], contributed["folded"])


def test_a_failed_training_still_says_what_was_scored_before(make: Make) -> None:
    """The validation counters of an undisturbed reply, and no contribution."""
    work: dict[str, Any] = {"learning_rate": 1e30, "steps": 6, "max_grad_norm": None, "optimiser": "sgd"}
    whole = make()
    request = whole.request()
    _, expected = whole.read(request, answer(request, whole.site), EVALUATION)
    server = make(**work)
    request = server.request()
    reply = answer(request, server.site)
    assert (reply.status, reply.code, set(reply.sums)) == ("failed", "non_finite_loss", {EVALUATION})
    _, found = server.read(request, reply, EVALUATION)
    assert found["examples"] == 3
    np.testing.assert_array_equal(found.vector, expected.vector)
    assert TRAINING not in server.site.parties.kept
    assert "train.loss" not in reply.local


def test_training_sums_ride_beside_the_contribution(make: Make) -> None:
    """Loss and targets of the local round, and the same figures in the site's own."""
    server = make()
    request = server.request()
    reply = answer(request, server.site)
    _, counters = server.read(request, reply, TRAINING)
    assert int(counters[TRAIN_TARGETS]) == 6  # three steps of two rows with one label each
    assert int(counters[TRAIN_LOSS]) > 0
    assert (reply.local["train.steps"], reply.local["train.examples"]) == (3.0, 6.0)
    assert 0.1 < reply.local["train.loss"] < 2


ROW_TEXT = "John Smith, born 1 May 1950"
FAULTS: dict[str, tuple[Exception, tuple[str, str, str]]] = {
    "a bug": (KeyError(ROW_TEXT), ("failed", "internal", "KeyError")),
    "no memory": (MemoryError(ROW_TEXT), ("failed", "internal", "MemoryError")),
    "a broken invariant": (
        InternalError("counters are empty", found=ROW_TEXT), ("failed", "internal", "counters are empty"),
    ),
    "a full disk": (
        StorageError("cannot write /home/smith/x", found=ROW_TEXT),
        ("failed", "storage", "the site could not read or write its own files"),
    ),
    "its policy": (PolicyError("not that model", found=ROW_TEXT), ("refused", "policy", "not that model")),
    "its budget": (BudgetError("ε is spent", found=ROW_TEXT), ("refused", "budget", "ε is spent")),
    "its settings": (ConfigError("no such task", found=ROW_TEXT), ("failed", "configuration", "no such task"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(FAULTS))
@pytest.mark.parametrize("where", ["measure", "train_locally", "contribution", "check_request"])
def test_every_error_is_named_and_its_text_stays_at_the_site(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    kind: str, where: str,
) -> None:  # fmt: skip
    """Wherever it happens: a stable code goes out; a foreign exception's text and traceback into the log."""
    from wardround.client import round as handler
    from wardround.client import work

    error, expected = FAULTS[kind]

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(work if where in ("train_locally", "contribution") else handler, where, broken)
    server = make()
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code, reply.reason) == expected
    assert ROW_TEXT not in repr(reply)
    assert ROW_TEXT in caplog.text
    assert ("Traceback" in caplog.text) is (expected[1] == "internal")
    assert "site ward, round 1 of run" in caplog.text
    assert set(reply.sums) == ({EVALUATION} if where in ("train_locally", "contribution") else set())


def spoiling(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Training that leaves its first coordinate at a value."""
    from wardround.client import work as handler

    train = handler.train_locally

    def spoilt(*args: Any, **keywords: Any) -> Any:
        result = train(*args, **keywords)
        vector = result.adapter.vector.copy()
        vector[0] = value
        return replace(result, adapter=result.adapter.with_vector(vector))

    monkeypatch.setattr(handler, "train_locally", spoilt)


def test_a_contribution_that_cannot_be_sent_is_the_sites_own_failure(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that training made infinite: no bad request, and what was scored is sent."""
    spoiling(monkeypatch, np.inf)
    server = make()
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code, set(reply.sums)) == ("failed", "bad_contribution", {EVALUATION})
    assert "trained adapter is not finite" in reply.reason


def test_an_update_beyond_the_plans_bound_is_clipped_and_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fits the ring whatever training did: the site stays in the round, and says how many coordinates."""
    spoiling(monkeypatch, 1e9)
    server = make()
    request = server.request()
    reply = answer(request, server.site)
    assert (reply.status, reply.local["clipped"]) == ("ok", 1.0)
    weighted, _ = server.read(request, reply, TRAINING)
    assert weighted[0] == pytest.approx(6 * 0.05, abs=1e-8)


def test_an_update_longer_than_the_plans_bound_is_shortened_and_told(make: Make) -> None:
    """To its length, and by which factor."""
    encoding = Encoding(bits=32, largest=0.05, norm=0.01, most_weight=10)
    server = make(encoding=encoding)
    request = server.request()
    reply = answer(request, server.site)
    weighted, _ = server.read(request, reply, TRAINING)
    assert 0 < reply.local["shortened_by"] < 1
    assert np.linalg.norm(weighted / 6) == pytest.approx(0.01, rel=1e-3)
    assert np.linalg.norm(weighted / 6) <= 0.01


def test_a_site_that_weighs_more_than_the_plan_allows_says_so(make: Make, tmp_path: Path) -> None:
    """Six rows where the plan has room for five: a named failure, and nothing of the contribution is kept."""
    server = make(encoding=Encoding(bits=32, largest=0.05, most_weight=5), optimiser_state="keep")
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code, set(reply.sums)) == ("failed", "weight_above_plan", {EVALUATION})
    assert not list(tmp_path.iterdir())
    assert TRAINING not in server.site.parties.kept


def test_round_1_starts_from_the_plans_initial_adapter_alone(make: Make) -> None:
    """Another adapter in round 1 is refused before it is loaded; in round 2 it is what the server folded."""
    server = make()
    moved = server.initial.with_vector(server.initial.vector + np.float32(0.01))
    refused = answer(server.request(broadcast=moved), server.site)
    assert (refused.status, refused.code) == ("refused", "bad_request")
    assert "initial adapter" in refused.reason
    assert answer(server.request(2, broadcast=moved), server.site).status == "ok"


@pytest.mark.parametrize("stage", [-1, 1, 7])
def test_a_stage_that_the_strategy_does_not_have_is_refused(make: Make, stage: int) -> None:
    """Before anything is loaded."""
    server = make()
    reply = answer(replace(server.request(sums=[TRAINING]), stage=stage), server.site)
    assert (reply.status, reply.code) == ("refused", "bad_request")
    assert "a stage that the strategy does not have" in reply.reason


def test_nothing_but_our_own_words_goes_out_over_flower(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A message for nobody, one that cannot be read, a codec that breaks: Flower's error with our reason."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from wardround.client import flower_app
    from wardround.runtime.flower_codec import encode_request

    for name in ("_run_id", "_node_id", "_task_id"):  # Flower sets them where it runs an app
        monkeypatch.setattr(TaskIdentity, name, 1)
    server = make()
    site, request = server.site, server.request()
    app = flower_app.client_app({(site.run_id, site.name): site})
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})

    def reason(content: RecordDict) -> str:
        reply = app(Message(content, 1, "train"), context)
        assert reply.has_error()
        return reply.error.reason or ""

    assert "not served here" in reason(encode_request(replace(request, site="other"))[0])
    assert "manifest" in reason(RecordDict({"manifest": ConfigRecord({"json": ROW_TEXT})}))

    def broken(*_: Any) -> Any:
        raise RuntimeError(ROW_TEXT)

    monkeypatch.setattr(flower_app, "encode_reply", broken)
    assert reason(encode_request(request)[0]) == "RuntimeError"
    assert ROW_TEXT in caplog.text


def test_a_site_that_can_make_the_broadcast_needs_none(make: Make) -> None:
    """The same answer as with it; for another digest, or before it knows anything, it is behind."""
    with_it, without = make(), make()
    for server in (with_it, without):
        assert answer(server.request(), server.site).status == "ok"
    second = with_it.request(2)
    assert second.broadcast is not None
    named = replace(second, broadcast=None, follows=second.broadcast.digest)
    for bad in (replace(named, follows="0" * 64), replace(named, opened=(b"garbled",))):
        refused = answer(bad, without.site)
        assert (refused.status, refused.code, refused.sums) == ("failed", BEHIND, {})
        assert not refused.local
    assert answer(replace(named, run_id="another"), without.site).code == "bad_request"
    own = without.request(2)
    assert own.broadcast is not None
    first = answer(with_it.request(2), with_it.site)
    second_reply = answer(replace(own, broadcast=None, follows=own.broadcast.digest), without.site)
    assert second_reply.status == first.status == "ok"
    assert set(second_reply.sums) == set(first.sums)
    fresh = make()
    asked = fresh.request(2)
    assert asked.broadcast is not None
    behind = answer(replace(asked, broadcast=None, follows=asked.broadcast.digest), fresh.site)
    assert behind.code == BEHIND
    assert answer(asked, fresh.site).status == "ok", "and takes it when it is sent"
