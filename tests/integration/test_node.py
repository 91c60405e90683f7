"""What a site's node says to an offered plan: each reason by its code, and what it has accepted stays so."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from federation import Federation
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from full_disk import full_disk
from hypothesis import given
from hypothesis import strategies as st
from offers import COUNTS, RUN, codes, node, offer, set_up

from wardround.client.admitting import runs_of
from wardround.client.flower_app import answered
from wardround.client.keeper import own_keeper
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.membership.site_folder import confirmed_roster
from wardround.client.memory import Kept
from wardround.client.sealed_files import Owner
from wardround.core.errors import PeerError, PolicyError, StorageError
from wardround.core.messages import Request
from wardround.core.plan_offers import PlanAnswer, PlanOffer, Reason
from wardround.core.seeds import Purpose
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.sums.contract import TRAINING
from wardround.privacy.sums.offers import offer_of
from wardround.runtime.flower_codec import encode_request
from wardround.runtime.offer_codec import decode_answer, decode_offer, encode_answer, encode_offer
from wardround.runtime.plan_folder import SIGNED, read_initial, read_plan
from wardround.runtime.roster import SERVER
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import read_identity
from wardround.server.consortium.server_folder import open_server_folder
from wardround.strategies.contract import LocalRules, ServerState, SiteMemory
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.plan_strategy import bind_strategy


def test_a_sound_offer_is_accepted_and_stays_so(federation: Federation) -> None:
    """With what the policy lets it say; a restarted node serves the same run, and says the same again."""
    first = node(federation)
    answer = first.answer(offer(federation))
    assert codes(answer) == ("accepted", [])
    assert (answer.rows, answer.seconds_a_round) == ("enough", 1.0)
    again = node(federation)
    site = again.get((RUN, "basel"))
    assert site is not None
    assert len(site.training) == len(first.get((RUN, "basel")).training)  # type: ignore[union-attr]  # accepted above
    assert again.answer(offer(federation)) == answer
    assert again.get((RUN, "cork")) is None
    assert again.get(("another", "basel")) is None


def test_what_a_node_keeps_between_rounds_is_sealed(federation: Federation) -> None:
    """Under the site's storage key, in the run's folder; a restarted node reads it."""
    own = node(federation)
    own.answer(offer(federation))
    site = own.get((RUN, "basel"))
    assert site is not None
    part = site.bench.initial_adapter()
    site.store.save(Kept(SiteMemory({"own": part})), round=1)
    (file,) = site.store.folder.iterdir()
    assert file == federation.practice.sites["basel"].path / "runs" / RUN / "memory" / "round-00001.sealed"
    assert part.vector.tobytes() not in file.read_bytes()
    again = node(federation).get((RUN, "basel"))
    assert again is not None
    assert again.store.load(before_round=2).memory.slots["own"].digest == part.digest


def test_a_restarted_node_holds_a_broadcast_against_what_it_knew(federation: Federation) -> None:
    """A process that is new refuses what the old one would have refused."""
    own = node(federation)
    own.answer(offer(federation))
    site = own.get((RUN, "basel"))
    assert site is not None
    initial = read_initial(federation.practice.folder / "plan", site.plan)
    assert site.folds.check(1, initial, (), {})
    again = node(federation).get((RUN, "basel"))
    assert again is not None
    crafted = initial.with_vector(initial.vector + np.float32(0.5))
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        again.folds.check(2, crafted, (), {})
    last = node(federation).get((RUN, "basel"))
    assert last is not None
    with pytest.raises(PeerError, match="an earlier broadcast"):
        last.folds.check(2, initial, (), {})


def test_the_supervisor_judges_an_offer_by_the_sites_own_folder(federation: Federation) -> None:
    """No record goes on in a run that was not accepted, under another plan or policy, or unapproved."""
    site, plan = federation.practice.sites["basel"], read_plan(federation.practice.folder / "plan").plan
    owner = Owner(run_id=RUN, plan=bytes.fromhex(plan.digest), site="basel")
    keeper = own_keeper(site)
    record, runs = keeper.record(owner, TRAINING), runs_of(site)
    with pytest.raises(PolicyError, match="accepted no such run"):
        runs(owner, TRAINING, record)
    node(federation).answer(offer(federation))
    server = open_server_folder(federation.practice.server).signer()
    layout, roster = bind_strategy(plan).statistics_layout(0), confirmed_roster(site)

    def signed(signer: KeySigner = server, **changes: Any) -> SiteState:
        made = offer_of(
            plan, name=TRAINING, run_id=RUN, round=1, stage=0, attempt=0, cohort=sorted(COUNTS),
            roster=roster.digest, broadcast=b"b" * 32, statistics=layout,
        )  # fmt: skip
        return SiteState().after(SignedOffer.by(signer, made.model_copy(update=changes)))

    run = runs(owner, TRAINING, record)
    run.check(SiteState(), signed())
    for bad in (signed(KeySigner.fresh()), signed(run_id=f"{RUN}/evaluation"), signed(cohort=("basel",))):
        with pytest.raises((PeerError, PolicyError)):
            run.check(SiteState(), bad)
    other = Owner(run_id=RUN, plan=b"p" * 32, site="basel")
    with pytest.raises(PolicyError, match="another plan"):
        runs(other, TRAINING, record)
    set_up(federation, approval="manual")
    with pytest.raises(PolicyError, match="no person"):
        runs(owner, TRAINING, record)
    set_up(federation, approval="automatic", policy={"modes": ["off"]})
    with pytest.raises(PolicyError):
        runs(owner, TRAINING, record)


def altered(data: bytes) -> bytes:
    """The envelope with one letter of its document changed."""
    return data.replace(b"tiny", b"tiNy", 1)


def other_key(federation: Federation, **fields: Any) -> bytes:
    """A certificate under the consortium's own key, with other fields."""
    own = open_server_folder(federation.practice.server).certificate()
    key = read_identity(federation.practice.operator / "consortium.key")
    return sign_document(SERVER, own.model_copy(update=fields), key)


PAST = datetime.now(UTC) - timedelta(days=2)
BAD: dict[str, tuple[Callable[[Federation], dict[str, Any]], tuple[str, list[str]]]] = {
    "another site's": (lambda _: {"site": "cork"}, ("refused", ["bad_message"])),
    "a run that names a folder": (lambda _: {"run_id": "../keys"}, ("refused", ["bad_message"])),
    "an altered plan": (lambda f: {"plan": altered(offer(f).plan)}, ("refused", ["bad_message"])),
    "no plan": (lambda _: {"plan": b"{}"}, ("refused", ["bad_message"])),
    "an altered certificate": (lambda _: {"certificate": b"{}"}, ("refused", ["bad_message"])),
    "an expired certificate": (
        lambda f: {"certificate": other_key(f, issued=PAST - timedelta(days=1), expires=PAST)},
        ("refused", ["bad_message"]),
    ),
    "another consortium's certificate": (
        lambda f: {"certificate": other_key(f, consortium="others")}, ("refused", ["bad_message"]),
    ),
    "a roster that nobody confirmed": (lambda _: {"roster": b"r" * 32}, ("waiting", ["roster_unconfirmed"])),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_an_offer_is_named_and_nothing_is_accepted(
    federation: Federation, what: str
) -> None:
    """By a stable code; the site serves no such run."""
    changes, expected = BAD[what]
    own = node(federation)
    changed = offer(federation, **changes(federation))
    assert codes(own.answer(changed)) == expected
    site = federation.practice.sites["basel"]
    assert not list((site.path / "runs").glob("*/accepted.json"))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "policy": ({"policy": {"modes": ["trusted"]}}, "policy"),
    "no model": ({"models": [{"path": "nowhere/at-all"}]}, "model_absent"),
    "no rows": ({"source": {"path": "nowhere.jsonl"}}, "rows"),
    "an unknown setting": ({"polizy": {}}, "settings"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_what_the_site_lacks_is_told_by_its_code_alone(federation: Federation, what: str) -> None:
    """No path and no value of `site.yaml` reaches the server."""
    settings, code = SETTINGS[what]
    set_up(federation, **settings)
    answer = node(federation).answer(offer(federation))
    assert codes(answer) == ("refused", [code])
    assert not any(word in answer.reasons[0].text for word in ("nowhere", "site.yaml", "polizy"))


def test_a_private_plan_needs_a_ledger_and_draws_from_the_system(federation: Federation) -> None:
    """Without one the site trains nothing; with one its batches and noise cannot be repeated."""
    plan = federation.plan(
        "private",
        units=(4, 6),
        privacy={"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3},
        strategy={"weighting": "uniform"},
        local={"epochs": 1, "batch_size": 2, "max_grad_norm": None},
    )
    private = offer(federation, plan=(plan / SIGNED).read_bytes())
    assert codes(node(federation).answer(private)) == ("refused", ["policy"])
    folder = federation.practice.sites["basel"].path / "ledger"
    policy = BudgetPolicy(epsilon=50.0, delta=1e-3, allow_release=True)  # some are held back
    Ledger.create(folder, policy, units=5).close()
    own = node(federation)
    assert codes(own.answer(private)) == ("accepted", [])
    site = own.get((RUN, "basel"))
    assert site is not None
    assert site.privacy is not None
    assert not site.privacy.simulation
    assert not site.privacy.sources(Purpose.NOISE, 1).repeatable


@pytest.mark.parametrize("name", ["plan.signed.json", "accepted.json"])
def test_an_offer_that_cannot_be_kept_is_asked_again(federation: Federation, name: str) -> None:
    """A refusal would stand for the whole run; the disk is full for an hour."""
    site, path = node(federation), federation.practice.sites["basel"].path
    with full_disk(path, lambda file: name in file.name):
        assert codes(site.answer(offer(federation))) == ("waiting", ["storage"])
    assert codes(site.answer(offer(federation))) == ("accepted", [])


def test_another_plan_in_the_same_run_is_refused(federation: Federation) -> None:
    """What was accepted is not replaced by a later offer."""
    own = node(federation)
    own.answer(offer(federation))
    other = federation.plan("other", seed=1)
    changed = offer(federation, plan=(other / SIGNED).read_bytes())
    assert codes(own.answer(changed)) == ("refused", ["bad_message"])
    assert node(federation).get((RUN, "basel")).plan.seed == 0  # type: ignore[union-attr]  # accepted above


def test_a_damaged_acceptance_is_refused_by_name(federation: Federation) -> None:
    """Never taken for none."""
    node(federation).answer(offer(federation))
    path = federation.practice.sites["basel"].path / "runs" / RUN / "accepted.json"
    path.write_text("{}")
    with pytest.raises(StorageError, match="does not hold what this site wrote"):
        node(federation).get((RUN, "basel"))


def test_a_request_for_a_run_that_was_not_accepted_is_refused(federation: Federation) -> None:
    """Whoever skips the offer gets no answer."""
    request = Request(run_id=RUN, plan_digest="d" * 64, round=1, site="basel", sums={"training": b""})
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # a message asks who makes it
    message = Message(encode_request(request)[0], 1, "train")
    with pytest.raises(PeerError, match="not served here"):
        answered(message, node(federation))


NAMES = st.text(min_size=1, max_size=20)
RUN_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
BYTES = st.binary(max_size=200)
REASONS = st.lists(
    st.builds(Reason, st.from_regex("[a-z_]{1,20}", fullmatch=True), st.text(max_size=50)), max_size=5
).map(tuple)
VERDICTS = st.sampled_from(["accepted", "refused", "waiting"])
ROWS = st.sampled_from(["enough", "not_enough", "unsaid"])
SECONDS = st.none() | st.floats(0, 1e6)


@given(st.builds(PlanOffer, RUN_IDS, NAMES, BYTES, BYTES, st.binary(min_size=32, max_size=32)))
def test_offers_travel_whole(sent: PlanOffer) -> None:
    """As Flower records and back."""
    assert decode_offer(encode_offer(sent)[0]) == sent


@given(st.builds(PlanAnswer, RUN_IDS, NAMES, VERDICTS, REASONS, ROWS, SECONDS))
def test_answers_travel_whole(sent: PlanAnswer) -> None:
    """As Flower records and back."""
    assert decode_answer(encode_answer(sent)[0]) == sent


@given(st.text(max_size=200), st.binary(max_size=50))
def test_any_other_records_are_refused_by_name(text: str, data: bytes) -> None:
    """A hostile manifest, and arrays that are not what it says: a PeerError and nothing else."""
    records = RecordDict({"manifest": ConfigRecord({"json": text})})
    for decode in (decode_offer, decode_answer):
        with pytest.raises(PeerError):
            decode(records)
    sent, _ = encode_offer(PlanOffer(RUN, "basel", data, data, b"r" * 32))
    del sent.array_records["arrays"]["plan"]
    with pytest.raises(PeerError, match="lacks its array"):
        decode_offer(sent)


def test_an_idle_site_lets_its_model_go_and_takes_it_back(federation: Federation) -> None:
    """Nothing refers to it any more; keys and rows are the very ones, and the model has the same bits."""
    set_up(federation, idle_release_s=30)
    own = node(federation)
    own.answer(offer(federation))
    site = own.get((RUN, "basel"))
    assert site is not None
    parties, training, digest = site.parties, site.training, site.bench.base.digest
    fresh = site.bench.initial_adapter().vector.copy()
    model = weakref.ref(site.bench.model)
    own.idle(29.9)
    assert own.get((RUN, "basel")) is site
    del site
    own.idle(30.0)
    assert model() is None
    own.idle(31.0)  # nothing more to let go
    woken = own.get((RUN, "basel"))
    assert woken is not None
    assert woken.parties is parties
    assert woken.training is training
    assert woken.bench.base.digest == digest
    assert np.array_equal(woken.bench.initial_adapter().vector, fresh)
    assert own.get((RUN, "basel")) is woken


def test_an_idle_site_that_is_told_to_keeps_its_model(federation: Federation) -> None:
    """Null in site.yaml; and one that has none lets nothing go."""
    set_up(federation, idle_release_s=None)
    own = node(federation)
    own.idle(1e9)
    own.answer(offer(federation))
    site = own.get((RUN, "basel"))
    own.idle(1e9)
    assert own.get((RUN, "basel")) is site


def test_a_site_whose_run_is_over_lets_its_model_go_soon(federation: Federation) -> None:
    """Whatever `idle_release_s` says: once the adapter after the last round was sent to be scored."""
    set_up(federation, idle_release_s=None)
    own = node(federation)
    own.answer(offer(federation))
    site = own.get((RUN, "basel"))
    assert site is not None
    initial = read_initial(federation.practice.folder / "plan", site.plan)
    rounds = site.plan.rounds.rounds
    for round, over in ((rounds - 1, False), (rounds, True)):
        site.folds.known = ServerState(round, initial)
        own.idle(29.0)
        assert own.get((RUN, "basel")) is site
        own.idle(31.0)
        assert (own.get((RUN, "basel")) is not site) is over


def test_an_idle_site_trains_a_round_to_the_same_bits(federation: Federation) -> None:
    """Beside one that was never idle."""
    found = []
    for idle in (False, True):
        own = node(federation)
        own.answer(offer(federation))
        if idle:
            own.idle(600.0)
        site = own.get((RUN, "basel"))
        assert site is not None
        initial = read_initial(federation.practice.folder / "plan", site.plan)
        result = train_locally(
            site.bench,
            LocalJob(
                site.training,
                initial,
                site.plan.local,
                LocalRules(),
                round=1,
                rounds=2,
                seed_root=site.plan.seed,
                site=site.name,
            ),
        )
        found.append(result.adapter.vector)
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], initial.vector)
