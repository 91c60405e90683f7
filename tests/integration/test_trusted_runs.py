"""Whole simulated runs through a trusted aggregator."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from wardround.client import flower_app
from wardround.client.parties import Parties
from wardround.core.errors import ConfigError, PolicyError, QuorumError
from wardround.core.messages import Reply, Request, reply_to
from wardround.privacy.packing import pack
from wardround.privacy.sums.contract import Lanes
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import prepare
from wardround.simulations.report import print_result
from wardround.simulations.secure_costs import key_digest
from wardround.simulations.simulate import SimulationResult, run_simulation

Settings = Callable[..., RunConfig]
Undisturbed = Callable[[RunConfig], SimulationResult]
KEY = simulated_aggregator(0).public.hex()
TRUSTED = {"mode": "trusted"}


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Settings:
    """Three wards, too few to hide in, and two rounds."""
    return notes(rows=36, wards=3, rounds=2)


def test_the_card_and_the_closing_lines_say_that_an_aggregator_was_trusted(
    settings: Settings, undisturbed: Undisturbed
) -> None:
    """And which: the digest of its key; the plan holds the key itself, the configuration stays as written."""
    result = undisturbed(settings("run", secure=TRUSTED))
    plan = json.loads((result.folder / "plan.json").read_text(encoding="utf-8"))
    assert plan["secure"]["aggregator"] == KEY
    written = yaml.safe_load((result.folder / "config.yaml").read_text(encoding="utf-8"))
    assert written["secure"]["aggregator"] is None
    assert result.summary["secure"]["mode"] == "trusted"
    assert result.summary["secure"]["aggregator"] == key_digest(KEY)
    console = Console(width=10_000, record=True, file=io.StringIO())
    print_result(result, console)
    for text in (console.export_text(), (result.folder / "README.md").read_text(encoding="utf-8")):
        assert "Secure aggregation trusted (an aggregator that sites trust saw each contribution" in text
        assert f"has the SHA-256 {key_digest(KEY)}…" in text


def test_two_runs_of_one_seed_have_one_plan_and_one_adapter(
    settings: Settings, undisturbed: Undisturbed
) -> None:
    """Ephemeral keys are fresh, the aggregator's is not; another seed has another."""
    one, two = undisturbed(settings("one", secure=TRUSTED)), run_simulation(settings("two", secure=TRUSTED))
    assert one.plan.digest == two.plan.digest
    assert one.federated.outcome.last.adapter.digest == two.federated.outcome.last.adapter.digest
    assert simulated_aggregator(1).public.hex() != KEY
    pinned = settings("three", secure={**TRUSTED, "aggregator": KEY})
    assert prepare(pinned).plan.digest == one.plan.digest


def test_an_interrupted_run_goes_on_under_the_same_key(
    settings: Settings, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 never gets its quorum, in no attempt; resumed, the run ends as if nothing had been."""
    whole = undisturbed(settings("whole", secure=TRUSTED)).federated.outcome.last.adapter.digest
    answer, asked, broken = flower_app.answer, list[Request](), [True]

    def fault(request: Request, site: Any) -> Reply:
        asked.append(request)
        if broken and request.round == 2 and request.site != "w0":
            return reply_to(request, status="failed", code="gone", reason="gone")
        return answer(request, site)

    monkeypatch.setattr(flower_app, "answer", fault)
    config = settings("run", secure=TRUSTED)
    with pytest.raises(QuorumError, match=r"(?s)did not reach its quorum.*w1, w2"):
        run_simulation(config)
    assert {request.attempt for request in asked if request.round == 2} == {0, 1, 2}
    broken.clear()
    resumed = run_simulation(config.model_copy(update={"resume": config.output}))
    assert resumed.federated.outcome.last.adapter.digest == whole


@pytest.mark.parametrize("mode", ["trusted", "off"])
def test_what_crosses_the_network_holds_no_contribution(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """No piece of what any site packed for its sums is in what Flower carries; under `off` every one is."""
    begin, encode, packed, sent = Parties.begin, flower_app.encode_reply, list[bytes](), list[bytes]()

    def watched(
        self: Parties, name: str, request: Request, broadcast: bytes, lanes: Lanes, kept: Any
    ) -> bytes:
        packed.append(pack(lanes.counters, 64))
        if lanes.coordinates.size:
            packed.append(pack(lanes.coordinates, 16))
        return begin(self, name, request, broadcast, lanes, kept)

    def encoded(reply: Reply) -> Any:
        records, size = encode(reply)
        sent.extend(array.data for part in records.array_records.values() for array in part.values())
        sent.extend(
            value if isinstance(value, bytes) else str(value).encode()
            for part in records.config_records.values()
            for value in part.values()
        )
        return records, size

    monkeypatch.setattr(Parties, "begin", watched)
    monkeypatch.setattr(flower_app, "encode_reply", encoded)
    run_simulation(settings("run", secure={"mode": mode}, rounds={"rounds": 1}))
    assert len(packed) == 3 * 3 + 3  # training has both lanes
    stream = b"\0".join(sent)
    pieces = [lane[at : at + 16] for lane in packed for at in range(0, len(lane) - 15, 16)]
    found = {piece in stream for piece in pieces if any(piece)}
    assert found == {mode == "off"}


@pytest.mark.parametrize(
    ("secure", "kind", "reason"),
    [
        (TRUSTED | {"policy": {"modes": ["real"]}}, PolicyError, r"secure\.mode=trusted.*one of real"),
        (
            TRUSTED | {"policy": {"modes": ["trusted"], "aggregator": "0f" * 32}},
            PolicyError, "does not trust the plan's aggregator",
        ),
        (TRUSTED | {"aggregator": "0f" * 32}, ConfigError, r"cannot open.*leave secure\.aggregator empty"),
    ],
)  # fmt: skip
def test_what_no_site_would_join_is_refused_before_anything_is_trained(
    settings: Settings, tmp_path: Path, secure: dict[str, Any], kind: type[Exception], reason: str
) -> None:
    """A policy without the mode, one that pinned another key, a key that nobody here holds."""
    with pytest.raises(kind, match=f"(?s){reason}"):
        run_simulation(settings("run", secure=secure))
    assert not (tmp_path / "run").exists()


def test_an_aggregator_under_another_mode_is_a_fault_of_the_configuration(settings: Settings) -> None:
    """It would be sealed to nobody."""
    with pytest.raises(ConfigError, match=r"(?s)secure\.mode=real has none: set secure\.mode to trusted"):
        settings("run", secure={"mode": "real", "aggregator": KEY})
