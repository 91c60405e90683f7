"""A tiny model on stage, and the three tests of the gate at a size for every day."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.training.private.audit.canaries import canaries
from wardround.training.private.audit.findings import all_pass
from wardround.training.private.audit.noise import noise_of_steps
from wardround.training.private.audit.sensitivity import sensitivity
from wardround.training.private.audit.stage import Stage, on_stage
from wardround.training.private.local import PrivateRound


@pytest.fixture(scope="session")
def private_round(seeded: Any) -> Callable[..., PrivateRound]:
    """`private_round(clipping=…, sigma=…, rate=…, seed=…)`."""

    def make(
        *, sigma: float = 2.0, rate: float = 0.5, bound: float = 0.3, seed: int = 0, **rules: Any
    ) -> PrivateRound:
        cost = RoundCost(20, rate, sigma, 4, 2, 1e-3, "patient")
        return PrivateRound(
            PrivacyRules(unit="patient", sigma=sigma, clip_norm=bound, **rules), cost, 5.0,
            [str(unit) for unit in range(20)], bound, seeded(seed), seeded(seed + 1), simulation=True,
        )  # fmt: skip

    return make


def small(family: str) -> dict[str, Any]:
    """Options of an adapter on few modules: forward passes are most of the time here."""
    return {"r": 4, "targets": ("q_proj", "down_proj")} if family == "llama" else {"r": 4}


@pytest.fixture
def staged(opened: Any, toys: Any, private_round: Any) -> Callable[..., Any]:
    """Opens a tiny Llama with ragged rows, one of them very long; settings are the private round's."""

    @contextmanager
    def make(family: str = "llama", **settings: Any) -> Iterator[Stage]:
        long = replace(toys.rows(1, seed=5, longest=90)[0], label=1)
        long = replace(long, targets=long.tokens)
        rows = [replace(row, targets=row.tokens) for row in toys.rows(11, longest=9)]
        with on_stage(opened(family, **small(family)), private_round(**settings), [*rows, long]) as stage:
            yield stage

    return make


@pytest.fixture(scope="session")
def gate() -> Any:
    """The three tests, each as a function of a stage: whether it passes."""

    def one_run(stage: Stage) -> bool:
        return canaries(stage, most=1000).finding.passed

    return SimpleNamespace(
        sensitivity=lambda stage: all_pass(sensitivity(stage, batches=3)),
        noise=lambda stage: all_pass(noise_of_steps([stage])),
        canaries=one_run,
    )
