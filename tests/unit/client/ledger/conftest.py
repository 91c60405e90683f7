"""Ledgers in temporary folders, and one way to ask them for a reservation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from restored_ledger import IDS

from wardround.client.ledger.draws import Reservation
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.sources import Source
from wardround.core.errors import BudgetError
from wardround.privacy.accounting.mechanisms import SampledGaussian

PLAN = "ab" * 32
STEP = SampledGaussian(sample_rate=0.01, sigma=2.0, steps=10)


class Asked:
    """Asks for reservations as a site's client does; what is not said is the same each time."""

    PLAN = PLAN
    STEP = STEP
    BITE = STEP.model_copy(update={"steps": 500})

    @staticmethod
    def reserve(ledger: Ledger, source: Source, round: int = 1, **changes: Any) -> Reservation:
        """One reservation."""
        fields: dict[str, Any] = {
            "run": "run", "plan": PLAN, "round": round, "stage": 0, "draw": "first", "mechanism": STEP,
        }  # fmt: skip
        return ledger.reserve(source, **(fields | changes))

    @staticmethod
    def exhaust(ledger: Ledger, source: Source, **changes: Any) -> int:
        """Reserves round after round, by the bite, until one is refused; how many were not."""
        fields = {"run": "run to the end", "mechanism": Asked.BITE} | changes
        for round in range(1_000):
            try:
                Asked.reserve(ledger, source, round, **fields)
            except BudgetError:
                return round
        raise AssertionError("nothing was ever refused")


@pytest.fixture
def asked() -> type[Asked]:
    """Plan, mechanism, and how they are asked for."""
    return Asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the ledger is."""
    return tmp_path / "site" / "ledger"


@pytest.fixture
def policy() -> BudgetPolicy:
    """ε = 3 at δ = 1e-5."""
    return BudgetPolicy(epsilon=3.0, delta=1e-5)


@pytest.fixture
def ledger(folder: Path, policy: BudgetPolicy) -> Iterator[Ledger]:
    """A new ledger, open."""
    with Ledger.create(folder, policy, units=1000, now=lambda: 1_800_000_000.0) as made:
        yield made


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Makes ledgers under other policies, each in a folder of its own."""
    with ExitStack() as opened:
        count = iter(range(1000))

        def made(epsilon: float | None = 3.0, *, units: int = 1000, **rules: Any) -> Ledger:
            policy = BudgetPolicy(epsilon=epsilon, delta=1e-5, **rules)
            return opened.enter_context(
                Ledger.create(tmp_path / f"ledger {next(count)}", policy, units=units)
            )

        yield made


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Where the mirror is."""
    return tmp_path / "second" / "mirror"


@pytest.fixture
def backup(folder: Path, tmp_path: Path, policy: BudgetPolicy, mirror: Path, asked: Any) -> Path:
    """A copy of a mirrored ledger after round 1; the ledger itself went on to round 3."""
    copy = tmp_path / "backup"
    with Ledger.create(folder, policy, units=1000, mirror=mirror) as ledger:
        asked.reserve(ledger, ledger.source("ward", IDS))
    shutil.copytree(folder, copy)
    with Ledger.open(folder, mirror=mirror) as ledger:
        source = ledger.source("ward", IDS)
        asked.reserve(ledger, source, 2)
        ledger.source("clinic", ["x", "y"])
        asked.reserve(ledger, source, 3)
        ledger.seal(run="run", round=3, stage=0, digest="11" * 32)
    return copy
