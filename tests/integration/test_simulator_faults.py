"""What a simulation does with faults: errors in code, slow sites, bounds that could not be compared."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardround.client import work as handler
from wardround.core.errors import ConfigError, QuorumError
from wardround.runtime.events import RoundFolded, SiteReplied
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import run_simulation

ROW_TEXT = "John Smith, born 1 May 1950"
BROKEN = f"""
from wardround.strategies.fedavg import FedAvg

class Broken(FedAvg):
    def contribute(self, *args):
        raise KeyError("{ROW_TEXT}")

STRATEGY = Broken
"""


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Callable[..., RunConfig]:
    """Two wards, one round."""
    return notes(rows=24, wards=2, rounds=1)


def test_an_error_in_somebodys_code_is_found_on_stderr_and_in_no_message(
    settings: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The traceback of a broken strategy is shown as it is; event log and reply say KeyError, and no more."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would keep it from stderr
    with pytest.raises(QuorumError) as refused:
        run_simulation(settings("run", strategy={"name": "broken:STRATEGY"}))
    assert ROW_TEXT not in str(refused.value)
    said = capsys.readouterr().err
    assert f'raise KeyError("{ROW_TEXT}")' in said
    assert "site w0, round 1 of" in said
    log = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    replies = [record for record in map(json.loads, log.splitlines()) if record["event"] == "SiteReplied"]
    assert [(r["status"], r["code"], r["reason"]) for r in replies] == [
        ("failed", "internal", "KeyError")
    ] * 2
    assert ROW_TEXT not in log


def test_a_simulation_waits_for_every_site(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites that take longer than the deadline are in the sum: the adapter does not depend on the machine."""
    quick = run_simulation(settings("quick")).federated.outcome.last.adapter
    train = handler.train_locally

    def slow(*args: Any, **keywords: Any) -> Any:
        time.sleep(0.3)
        return train(*args, **keywords)

    monkeypatch.setattr(handler, "train_locally", slow)
    recorder = RecorderSink()
    result = run_simulation(settings("slow", rounds={"rounds": 1, "deadline_s": 0.05}), sinks=(recorder,))
    assert {e.status for e in recorder.events if isinstance(e, SiteReplied)} == {"ok"}
    folded = [e for e in recorder.events if isinstance(e, RoundFolded)]
    assert [(e.missing, e.wall_s > 0.6) for e in folded] == [((), True)]
    assert result.federated.outcome.last.adapter.digest == quick.digest


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_deadline_that_is_no_number_is_a_named_fault(
    settings: Callable[..., RunConfig], value: float
) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match=r"rounds\.deadline_s"):
        settings("run", rounds={"rounds": 1, "deadline_s": value})


@pytest.mark.parametrize(
    ("size", "dropout", "refused"), [(2, 0.1, True), (4, 0.1, False), (None, 0.1, False), (2, 0.0, False)]
)
def test_the_twin_refuses_what_it_would_not_repeat(
    settings: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    size: int | None,
    dropout: float,
    refused: bool,
) -> None:
    """A batch that is cut under dropout draws other masks than the twin's whole one."""
    from wardround.runtime.events import EventStream
    from wardround.simulations import twin
    from wardround.simulations.preparation import encode_all, prepare

    config = settings(
        "run",
        adapter={"options": {"r": 2, "alpha": 4, "dropout": dropout}},
        machine={"device": "cpu", "threads": 1, "microbatch_size": size},
    )
    prepared = prepare(config)
    arm = encode_all(prepared, EventStream())[0]
    if not dropout:  # the base of the tests has dropout of its own
        monkeypatch.setattr(twin, "drops", lambda model: False)
    if refused:
        with pytest.raises(ConfigError, match=r"machine\.microbatch_size"):
            twin.run_twin(arm, prepared.bench, prepared.initial)
        return
    assert twin.run_twin(arm, prepared.bench, prepared.initial).digest != prepared.initial.digest
