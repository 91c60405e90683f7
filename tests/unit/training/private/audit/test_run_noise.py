"""The gate's test of noise that is correlated over a run: what is fresh in each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wardround.privacy.noise import correlated
from wardround.training.private import gradient
from wardround.training.private.audit.findings import all_pass
from wardround.training.private.audit.noise import noise_of_run
from wardround.training.private.local import PrivateRound


@pytest.fixture
def in_blocks(private_round: Callable[..., PrivateRound], staged: Any) -> Callable[[], list[Any]]:
    """The findings on a tiny model of rows in three blocks."""

    def judge() -> list[Any]:
        with staged() as stage:
            private = private_round()
            return noise_of_run(
                [replace(stage, private=replace(private, cost=replace(private.cost, bands=3)))]
            )

    return judge


def test_the_noise_of_a_run_passes(in_blocks: Callable[[], list[Any]]) -> None:
    """Its deviation, mean, shape, and that no step's is another's."""
    findings = in_blocks()
    assert all_pass(findings)
    assert len(findings) >= 4


def halved(total: Any, deviation: float, source: Any, noise: Any) -> Any:
    """Half of it."""
    return noise.add(total, deviation / 2, source)


def frozen(total: Any, deviation: float, source: Any, noise: Any) -> Any:
    """The same fresh noise in every step."""
    del source
    return noise.add(
        total, deviation, type("Same", (), {"words": lambda _, n: np.full(n, 2**40, np.uint64)})()
    )


@pytest.mark.parametrize("mutant", [halved, frozen])
def test_a_mutant_of_it_is_caught(
    in_blocks: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, mutant: Any
) -> None:
    """Too little, and noise that a second look would take off."""
    monkeypatch.setattr(gradient, "add_correlated", mutant)
    assert not all_pass(in_blocks())


def test_noise_along_another_matrix_is_caught(
    in_blocks: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit would move that one by more than the account says: it takes back all of the step before."""
    monkeypatch.setattr(correlated, "coefficients", np.ones)
    assert not all_pass(in_blocks())
