"""Runs whose sites are trained by whoever: in this process, in forked ones, on Ray."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.runtime.event_log import read_events
from wardround.runtime.events import Evaluated, SiteReplied
from wardround.simulations.simulate import SimulationResult
from wardround.training.local_round import LocalJob

SECTIONS: list[dict[str, Any]] = [
    {"strategy": {"name": "scaffold"}, "local": {"optimiser_state": "keep"}},
    {"simulation": {"ranks": [1, 2]}, "strategy": {"name": "tangent"}, "secure": {"mode": "real"}},
    {
        "data": {"unit_column": "patient", "labels": ["0", "1"]},
        "privacy": {"unit": "patient", "sigma": 1.0, "delta": 1e-3, "clip_norm": 1.0},
        "local": {"optimiser": "sgd", "batch_size": 2, "max_grad_norm": None},
        "strategy": {"weighting": "uniform"},
    },
    {
        "data": {"unit_column": "patient", "labels": ["0", "1"]},
        "privacy": {"unit": "patient", "sigma": 1.0, "delta": 1e-3, "mechanism": "banded", "bands": 3},
        "local": {"batch_size": 2, "max_grad_norm": None},
        "strategy": {"weighting": "uniform"},
    },
    {"simulation": {"together": 2}, "model": {"dropout": "off"}},
    {"simulation": {"together": 2, "ranks": [1, 2]}, "model": {"dropout": "off"}},
]
KINDS = pytest.mark.parametrize(
    "sections", SECTIONS, ids=["state", "ranks", "private", "banded", "together", "ranks-together"]
)
"""State at the sites, ranks of their own, privacy, noise that goes on, sites together, also of such ranks."""


def same_run(one: SimulationResult, other: SimulationResult) -> bool:
    """To the bit."""
    return one.federated.outcome.last.adapter.digest == other.federated.outcome.last.adapter.digest


def figures(result: SimulationResult) -> dict[tuple[int, str], dict[str, float]]:
    """Of each round and site, as the site measured them, without times."""
    events = read_events(result.folder / "metrics.jsonl")
    return {
        (e.round, e.site): {name: value for name, value in e.local.items() if "seconds" not in name}
        for e in events
        if isinstance(e, SiteReplied) and e.round <= 2
    }


def scored(result: SimulationResult) -> list[tuple[int, str, object]]:
    """What was scored on test and validation rows, in order."""
    events = read_events(result.folder / "metrics.jsonl")
    return [(e.round, e.part, (e.values, e.support, e.by_class)) for e in events if isinstance(e, Evaluated)]


def trains_at(job: Any, site: str) -> bool:
    """Whether it is that site's local round."""
    return isinstance(job, LocalJob) and job.site == site
