"""What a whole private round refuses: each guard where the round is put together, not at its own desk.

A round that is refused leaves its error and no adapter; `test_step_guards.py` has the guards one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wardround.core.errors import BudgetError, ConfigError, InternalError, PolicyError, TrainingError
from wardround.core.plan import LocalWork
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.strategies.contract import LocalRules
from wardround.training import local_round
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.private import per_example
from wardround.training.private.local import PrivateRound
from wardround.training.private.sampling import PoissonSampler

UNITS = ("ann", "ann", "bob", "cyd", "dan", "eve")
LOCAL = PrivacyRules(unit="patient", sigma=1.0, delta=1e-2)
DISTRIBUTED = PrivacyRules(unit="patient", sigma=1.0, delta=1e-2, noise="distributed", sample_rate=0.5)
SGD = LocalWork(steps=2, batch_size=2, optimiser="sgd", learning_rate=0.5, max_grad_norm=None)
Train = Callable[..., LocalResult]


@pytest.fixture
def bench(opened: Any) -> Any:
    """A small classifier."""
    return opened("bert")


@pytest.fixture
def train(bench: Any, toys: Any, seeded: Any) -> Train:
    """A round of two steps of half the patients; keyword arguments replace parts of it."""

    def run(rules: PrivacyRules = LOCAL, **options: Any) -> LocalResult:
        source = seeded(3, repeatable=options.get("repeatable", True))
        steps = 1 if rules is DISTRIBUTED else 2
        private = PrivateRound(
            rules, RoundCost(5, 0.5, 1.0, steps, 3, 1e-2, "patient"), 2.0, UNITS, 1.0,
            options.get("batches", source), options.get("noise", source), options.get("simulation", True),
        )  # fmt: skip
        work = SGD.model_copy(update={"steps": steps})
        return train_locally(
            bench,
            LocalJob(
                toys.rows(len(UNITS)),
                bench.initial_adapter(),
                work,
                LocalRules(),
                round=1,
                rounds=3,
                seed_root=1,
                site="ward",
                private=private,
            ),
        )

    return run


@pytest.mark.parametrize("rules", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_a_round_that_breaks_nothing_is_trained(bench: Any, train: Train, rules: PrivacyRules) -> None:
    """Else the refusals below say nothing. Its rows stay apart, and so padded."""
    bench.padding.attended = -1
    result = train(rules)
    assert bench.padding.attended == -1
    assert len(result.private) == result.steps
    assert (result.loss_sum, result.targets) == (0.0, 0)


@pytest.mark.parametrize("rules", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_a_loader_that_is_not_poisson_is_refused(
    train: Train, rules: PrivacyRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one size, shuffled, have another guarantee than the account says."""

    class Shuffled:
        def draw(self) -> list[int]:
            return [0, 2, 4]

    monkeypatch.setattr(PrivateRound, "sampler", lambda *_: Shuffled())
    with pytest.raises(InternalError, match="the account says Poisson"):
        train(rules)


@pytest.mark.parametrize("rules", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_a_loader_at_another_rate_is_refused(
    train: Train, rules: PrivacyRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger than the one that was paid for, or smaller."""
    for rate in (0.6, 0.4):
        monkeypatch.setattr(
            PrivateRound, "sampler", lambda self, _, q=rate: PoissonSampler(self.units, q, self.batches)
        )
        with pytest.raises(InternalError, match="in another way than the account says"):
            train(rules)


def test_more_steps_than_were_reserved_are_refused(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the loop counts."""
    plain = local_round.noised_gradients

    def longer(*args: Any) -> Any:
        opened = plain(*args)

        class Longer:
            def __enter__(self) -> Any:
                gradients = opened.__enter__()
                gradients.steps += 1
                return gradients

            def __exit__(self, *error: object) -> Any:
                return opened.__exit__(*error)

        return Longer()

    monkeypatch.setattr(local_round, "noised_gradients", longer)
    with pytest.raises(BudgetError, match="more private steps than were reserved"):
        train()


@pytest.mark.parametrize("rules", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_a_parameter_without_a_rule_is_refused_by_name(
    train: Train, rules: PrivacyRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first batch is drawn."""

    def drawn(*_: Any) -> Any:
        pytest.fail("a batch was drawn")

    plain = per_example.rule_of
    monkeypatch.setattr(PoissonSampler, "draw", drawn)
    monkeypatch.setattr(
        per_example, "rule_of", lambda module: None if isinstance(module, nn.Linear) else plain(module)
    )
    with pytest.raises(ConfigError, match=r"lora_[AB]"):
        train(rules)


class Stepping(torch.optim.SGD):
    """SGD, and something else in each step."""

    also: Callable[[], None] = staticmethod(lambda: None)

    def step(self, closure: Any = None) -> Any:
        """After the plain one."""
        super().step(closure)
        type(self).also()


@pytest.fixture
def optimiser(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the round step with another optimiser: one that does something else as well, or not at all."""

    def build(also: Callable[[], None] = lambda: None, rate: float = 0.5) -> None:
        monkeypatch.setattr(Stepping, "also", staticmethod(also))
        monkeypatch.setattr(
            local_round, "build_optimiser", lambda _, parameters: Stepping(parameters.values(), lr=rate)
        )
        monkeypatch.setattr(local_round, "set_rate", lambda *_: None)

    return build


def test_an_optimiser_that_moves_nothing_is_noticed(train: Train, optimiser: Callable[..., None]) -> None:
    """After the first step: 45 hours later would be too late."""
    optimiser()
    train()
    optimiser(rate=0.0)
    with pytest.raises(TrainingError, match="the same") as caught:
        train()
    assert caught.value.code == "nothing_moved"


@pytest.mark.parametrize("through_data", [False, True])
def test_an_optimiser_that_moves_the_base_is_noticed(
    train: Train, bench: Any, optimiser: Callable[..., None], through_data: bool
) -> None:
    """Whether torch counts the write or not."""
    frozen = next(p for p in bench.model.parameters() if not p.requires_grad)

    def write() -> None:
        (frozen.data if through_data else frozen).mul_(1.5)

    optimiser(write)
    with pytest.raises(InternalError, match="outside the adapter"):
        train()


def test_an_optimiser_that_runs_a_pass_of_its_own_is_refused(
    train: Train, bench: Any, toys: Any, optimiser: Callable[..., None]
) -> None:
    """As with a closure: what it would add to `.grad` is neither clipped nor noised."""
    rows = toys.rows(len(UNITS))

    def backward() -> None:
        batch = bench.task.collate(rows, bench.data)
        with torch.enable_grad():
            bench.task.example_losses(bench.model, batch).sum().backward()

    optimiser(backward)
    with pytest.raises(InternalError, match="a plain gradient reaches") as caught:
        train()
    assert caught.value.found in bench.parameters()
    for parameter in bench.parameters().values():  # the guard goes with the round
        parameter.grad = None
    backward()


@pytest.mark.parametrize("which", ["batches", "noise"])
@pytest.mark.parametrize("rules", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_a_seed_is_for_simulations(train: Train, seeded: Any, rules: PrivacyRules, which: str) -> None:
    """Each of the two by itself, under either kind of noise."""
    secret = {"repeatable": False, "simulation": False}
    train(rules, **secret)
    with pytest.raises(PolicyError, match="comes from a seed"):
        train(rules, **secret, **{which: seeded(4)})
