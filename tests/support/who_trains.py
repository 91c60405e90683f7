"""Runs whose sites are trained by whoever: in this process, in forked ones, on Ray."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.runtime.event_log import read_events
from wardround.runtime.events import SiteReplied
from wardround.simulations.simulate import SimulationResult

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
