"""The site's handler over a real tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.memory import SiteStore
from wardround.client.round import answer
from wardround.client.site import Site
from wardround.core.counting import TRAIN_LOSS, TRAIN_TARGETS, VALIDATION, WEIGHT
from wardround.core.errors import BudgetError, ConfigError, InternalError, PolicyError, StorageError
from wardround.core.messages import Reply, Request
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    StrategySpec,
    TaskSpec,
)
from wardround.privacy.ring import decode
from wardround.training.adapters import ADAPTERS
from wardround.training.base_model import BaseModelConfig
from wardround.training.evaluation import evaluate
from wardround.training.examples import Example
from wardround.training.planning import bind_strategy, make_plan
from wardround.training.tasks import TASKS
from wardround.training.workbench import Machine, Workbench, open_workbench

TEXTS = ("sharp pain, fever", "slept well", "cough all night", "calm and rested", "sudden chills", "easy day")


@pytest.fixture(scope="module")
def bench(tiny_bert: Path) -> Workbench:
    """A tiny encoder with an adapter on it."""
    torch.set_num_threads(1)
    data = DataContract(columns={"text": "t", "label": "l"}, labels=("well", "ill"), max_length=24)
    method = ADAPTERS.get("lora")
    return open_workbench(
        BaseModelConfig(path=str(tiny_bert)), TASKS.get("sequence_classification"), data, method,
        method.Options(r=2, alpha=4), Machine(device="cpu", threads=1), seed=5,
    )  # fmt: skip


def site_of(bench: Workbench, folder: Path, rows: int = 6, **work: Any) -> tuple[Site, Request]:
    """A site with a few rows, and the request of its first round."""
    task = bench.task
    spec = TaskSpec(name=task.name, metrics=task.metric_family)
    local = LocalWork(**({"steps": 3, "batch_size": 2, "learning_rate": 1e-2} | work))
    plan, initial = make_plan(
        bench, name="p", seed=5, task=spec, data=bench.data, adapter_options={}, start_from=None, local=local,
        strategy=StrategySpec(), encoding=Encoding(), rounds=RoundRules(rounds=3),
        release=ReleaseRule(metric="accuracy", direction="max"),
    )  # fmt: skip
    examples = [Example(i, {"text": text}, label=i % 2) for i, text in enumerate(TEXTS)]
    encoded = task.encode(examples, bench.tokenizer, plan.data, spec)
    site = Site(
        "ward", "run", plan, bind_strategy(plan), bench, encoded[:rows], encoded[:3], SiteStore(folder)
    )
    request = Request(
        "run", plan.digest, 1, "ward", train=True, evaluate=True, broadcast=initial, cohort_size=4
    )
    return site, request


def test_the_contribution_is_the_weighted_update(bench: Workbench, tmp_path: Path) -> None:
    """Decoded and divided by the weight it is after − before, to the ring's quantum."""
    site, request = site_of(bench, tmp_path)
    reply = answer(request, site)
    assert reply.status == "ok"
    assert reply.counters is not None
    assert reply.statistics is not None
    weight = int(reply.counters[WEIGHT])
    update = decode(reply.statistics, site.plan.encoding) / weight
    trained = bench.read_adapter().vector.astype(np.float64) - request.broadcast.vector
    assert weight == 6
    np.testing.assert_allclose(update, trained, rtol=0, atol=2.0**-36)
    assert np.abs(update).max() > 1e-3


def test_counters_are_those_of_an_evaluation_of_the_broadcast(bench: Workbench, tmp_path: Path) -> None:
    """Validation counters equal `evaluate` on the adapter before training."""
    site, request = site_of(bench, tmp_path)
    reply = answer(request, site)
    bench.load_adapter(request.broadcast)
    expected = evaluate(
        bench.model, bench.task, site.plan.task, site.plan.data, site.validation,
        batch_size=32, device=bench.device, tokenizer=bench.tokenizer,
    )  # fmt: skip
    assert reply.counters is not None
    for name, array in expected.tensors().items():
        np.testing.assert_array_equal(reply.counters[VALIDATION + name], array)


def test_an_evaluation_alone_contributes_nothing(bench: Workbench, tmp_path: Path) -> None:
    """Weight 0, no statistics, nothing trained, nothing kept."""
    site, request = site_of(bench, tmp_path, optimiser_state="keep")
    reply = answer(replace(request, train=False), site)
    assert reply.counters is not None
    assert (reply.status, reply.statistics, int(reply.counters[WEIGHT])) == ("ok", None, 0)
    assert int(reply.counters[TRAIN_TARGETS]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", ["reset", "keep"])
def test_the_same_request_gives_the_same_reply(bench: Workbench, tmp_path: Path, state: str) -> None:
    """Asked again for a round, also after a later one, a site answers with the same bits."""
    site, request = site_of(bench, tmp_path, optimiser_state=state)
    second = replace(request, round=2)
    replies = [answer(asked, site) for asked in (request, second, request, second)]
    np.testing.assert_array_equal(replies[0].statistics, replies[2].statistics)
    np.testing.assert_array_equal(replies[1].statistics, replies[3].statistics)
    assert (replies[0].statistics != replies[1].statistics).any()


def poisoned(request: Request) -> Request:
    """A broadcast with one NaN."""
    vector = request.broadcast.vector.copy()
    vector[3] = np.nan
    return replace(request, broadcast=request.broadcast.with_vector(vector))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: replace(r, run_id="other"), "another run"),
        (lambda r: replace(r, plan_digest="f" * 64), "another plan"),
        (lambda r: replace(r, site="other"), "another site"),
        (poisoned, "not finite"),
    ],
    ids=["run", "plan", "site", "nan"],
)
def test_a_request_outside_the_plan_is_refused(
    bench: Workbench, tmp_path: Path, change: Any, reason: str
) -> None:
    """Refused with its reason, before anything is trained."""
    site, request = site_of(bench, tmp_path)
    reply = answer(change(request), site)
    assert (reply.status, reply.code, reply.statistics) == ("refused", "bad_request", None)
    assert reason in reply.reason


def test_a_site_without_rows_says_so(bench: Workbench, tmp_path: Path) -> None:
    """A failed reply with a code and no data."""
    site, request = site_of(bench, tmp_path, rows=0)
    reply = answer(request, site)
    assert (reply.status, reply.code) == ("failed", "no_rows")


def test_a_loss_that_is_not_finite_is_a_named_failure(bench: Workbench, tmp_path: Path) -> None:
    """A learning rate that explodes: the reply names the code, and the site's store stays as it was."""
    site, request = site_of(
        bench,
        tmp_path,
        learning_rate=1e30,
        steps=6,
        max_grad_norm=None,
        optimiser="sgd",
        optimiser_state="keep",
    )
    reply = answer(request, site)
    assert (reply.status, reply.code) == ("failed", "non_finite_loss")
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_is_said_and_never_guessed(
    bench: Workbench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped byte in what the site kept is named as such; the path stays at the site, in its log."""
    site, request = site_of(bench, tmp_path, optimiser_state="keep")
    answer(request, site)
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    reply = answer(replace(request, round=2), site)
    assert (reply.status, reply.code, reply.statistics) == ("failed", "storage", None)
    assert str(tmp_path) not in reply.reason
    assert str(kept) in caplog.text


def test_the_store_keeps_only_what_a_repeated_round_needs(bench: Workbench, tmp_path: Path) -> None:
    """Files of rounds long past go."""
    site, request = site_of(bench, tmp_path, optimiser_state="keep")
    for round in range(1, 6):
        assert answer(replace(request, round=round), site).status == "ok"
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["round-00004", "round-00005"]


def validation_of(reply: Reply) -> dict[str, np.ndarray[Any, Any]]:
    """The validation counters of a reply."""
    assert reply.counters is not None
    return {n: a for n, a in reply.counters.tensors().items() if n.startswith(VALIDATION)}


def test_a_failed_training_still_says_what_was_scored_before(bench: Workbench, tmp_path: Path) -> None:
    """The validation counters of an undisturbed reply; weight and training sums are zero."""
    work: dict[str, Any] = {"learning_rate": 1e30, "steps": 6, "max_grad_norm": None, "optimiser": "sgd"}
    whole = validation_of(answer(*site_of(bench, tmp_path)[::-1]))
    site, request = site_of(bench, tmp_path, **work)
    reply = answer(request, site)
    assert (reply.status, reply.code, reply.statistics) == ("failed", "non_finite_loss", None)
    found = validation_of(reply)
    assert found[VALIDATION + "examples"] == 3
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)
    assert reply.counters is not None
    assert not any(reply.counters[name] for name in (WEIGHT, TRAIN_LOSS, TRAIN_TARGETS))


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
@pytest.mark.parametrize("where", ["measure", "train_locally", "encode", "check_request"])
def test_every_error_is_named_and_its_text_stays_at_the_site(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    kind: str, where: str,
) -> None:  # fmt: skip
    """Wherever it happens: a stable code goes out; a foreign exception's text and traceback into the log."""
    from wardround.client import round as handler

    error, expected = FAULTS[kind]

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(handler, where, broken)
    site, request = site_of(bench, tmp_path)
    reply = answer(request, site)
    assert (reply.status, reply.code, reply.reason) == expected
    assert ROW_TEXT not in repr(reply)
    assert ROW_TEXT in caplog.text
    assert ("Traceback" in caplog.text) is (expected[1] == "internal")
    assert "site ward, round 1 of run" in caplog.text
    assert (reply.counters is not None) is (where in ("train_locally", "encode"))


def test_a_contribution_that_cannot_be_sent_is_the_sites_own_failure(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that training made infinite, and an update that does not fit the ring: no bad request."""
    from wardround.client import round as handler

    site, request = site_of(bench, tmp_path)
    train = handler.train_locally
    for value, reason in ((np.inf, "trained adapter is not finite"), (1e9, "does not fit the ring")):

        def spoilt(*args: Any, value: float = value, **keywords: Any) -> Any:
            result = train(*args, **keywords)
            vector = result.adapter.vector.copy()
            vector[0] = value
            return replace(result, adapter=result.adapter.with_vector(vector))

        monkeypatch.setattr(handler, "train_locally", spoilt)
        reply = answer(request, site)
        assert (reply.status, reply.code) == ("failed", "bad_contribution")
        assert reason in reply.reason


def test_round_1_starts_from_the_plans_initial_adapter_alone(bench: Workbench, tmp_path: Path) -> None:
    """Another adapter in round 1 is refused before it is loaded; in round 2 it is what the server folded."""
    site, request = site_of(bench, tmp_path)
    moved = request.broadcast.with_vector(request.broadcast.vector + np.float32(0.01))
    refused = answer(replace(request, broadcast=moved), site)
    assert (refused.status, refused.code) == ("refused", "bad_request")
    assert "initial adapter" in refused.reason
    assert answer(replace(request, broadcast=moved, round=2), site).status == "ok"


@pytest.mark.parametrize("stage", [-1, 1, 7])
def test_a_stage_that_the_strategy_does_not_have_is_refused(
    bench: Workbench, tmp_path: Path, stage: int
) -> None:
    """Before anything is loaded."""
    site, request = site_of(bench, tmp_path)
    reply = answer(replace(request, stage=stage, evaluate=False), site)
    assert (reply.status, reply.code) == ("refused", "bad_request")
    assert "a stage that the strategy does not have" in reply.reason


def test_nothing_but_our_own_words_goes_out_over_flower(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A message for nobody, one that cannot be read, a codec that breaks: Flower's error with our reason."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from wardround.client import flower_app
    from wardround.runtime.flower_codec import encode_request

    for name in ("_run_id", "_node_id", "_task_id"):  # Flower sets them where it runs an app
        monkeypatch.setattr(TaskIdentity, name, 1)
    site, request = site_of(bench, tmp_path)
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
