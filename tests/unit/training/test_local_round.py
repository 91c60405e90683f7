"""One local round: what it computes, what it obeys, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from wardround.core.errors import TrainingError
from wardround.core.packed import Adapter
from wardround.core.plan import LocalWork, Schedule
from wardround.core.seeds import Purpose, generator
from wardround.strategies.contract import LocalRules
from wardround.training.batches import plan_batches
from wardround.training.encoded_text import EncodedText
from wardround.training.gradients import accumulate_gradient
from wardround.training.local_round import LocalJob, LocalResult, rows_in, train_locally
from wardround.training.tasks.contract import Task
from wardround.training.workbench import Machine, Workbench

FREE = LocalRules()
SGD = LocalWork(steps=1, batch_size=8, optimiser="sgd", learning_rate=0.5, max_grad_norm=None)


def train(bench: Workbench, rows: list[EncodedText], work: LocalWork, **options: Any) -> LocalResult:
    """A round of site `alpha`, from the fresh adapter unless told otherwise."""
    arguments: dict[str, Any] = {
        "before": bench.initial_adapter(),
        "rules": FREE,
        "round": 1,
        "rounds": 3,
        "seed_root": 11,
        "site": "alpha",
        "optimiser_state": None,
    } | options
    before, rules = arguments.pop("before"), arguments.pop("rules")
    return train_locally(bench, LocalJob(rows, before, work, rules, **arguments))


def mean_loss(bench: Workbench, rows: list[EncodedText], adapter: Adapter) -> float:
    """Nats a target, nothing dropped; the adapter stays loaded."""
    bench.load_adapter(adapter)
    with torch.no_grad():
        losses = bench.task.example_losses(bench.model, bench.task.collate(rows, bench.data))
    return float(losses.sum()) / sum(map(bench.task.targets, rows))


def noise(bench: Workbench, seed: int = 0) -> Adapter:
    """An adapter of small random numbers, so that every factor has a gradient."""
    vector = np.random.default_rng(seed).normal(0, 0.05, bench.layout.size).astype(np.float32)
    return bench.initial_adapter().with_vector(vector)


def gradient(bench: Workbench, rows: list[EncodedText]) -> torch.Tensor:
    """The flat gradient of one logical batch over all rows, at the adapter that is loaded."""
    for parameter in bench.parameters().values():
        parameter.grad = None
    bench.model.train()
    accumulate_gradient(bench, rows, np.arange(len(rows)))
    bench.model.train(False)
    flat = torch.cat(
        [torch.zeros(0), *(p.grad.reshape(-1) for p in bench.parameters().values() if p.grad is not None)]
    )
    for parameter in bench.parameters().values():
        parameter.grad = None
    return flat


@pytest.fixture(scope="module")
def llama(tiny_llama: Path, toys: Any) -> Workbench:
    """A causal bench that the tests of this file share."""
    bench: Workbench = toys.bench(tiny_llama, toys.causal)
    return bench


@pytest.fixture(scope="module")
def bert(tiny_bert: Path, toys: Any) -> Workbench:
    """A classifier's bench; BERT drops out, LoRA too."""
    bench: Workbench = toys.bench(tiny_bert, toys.classifier, dropout=0.1)
    return bench


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_microbatches_give_the_gradient_of_the_one_big_batch(
    size: int, checkpointing: bool, tiny_llama: Path, toys: Any
) -> None:
    """Ragged lengths, unequal numbers of target tokens: 1e-6 relative, activations recomputed or not."""
    whole = toys.bench(tiny_llama, toys.causal)
    machine = Machine(device="cpu", microbatch_size=size, gradient_checkpointing=checkpointing)
    cut = toys.bench(tiny_llama, toys.causal, machine=machine)
    rows = toys.rows(13)
    whole.load_adapter(noise(whole))
    cut.load_adapter(noise(cut))
    expected, found = gradient(whole, rows), gradient(cut, rows)
    assert expected.norm() > 1e-3
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_the_gradient_is_of_the_mean_over_targets_not_over_rows(llama: Workbench, toys: Any) -> None:
    """A twin by hand: sum of every row's own gradient, divided once by all target tokens."""
    llama.load_adapter(noise(llama))
    rows = toys.rows(5)
    counts = [llama.task.targets(row) for row in rows]
    by_hand = sum(gradient(llama, [row]) * n for row, n in zip(rows, counts, strict=True)) / sum(counts)
    found = gradient(llama, rows)
    assert (found - by_hand).norm() <= 1e-6 * found.norm()
    unweighted = sum(gradient(llama, [row]) for row in rows) / len(rows)
    assert (found - unweighted).norm() > 1e-2 * found.norm()


def test_checkpointing_changes_no_bit_even_under_dropout(tiny_bert: Path, toys: Any) -> None:
    """The recomputed forward pass draws the same dropout masks."""
    work, rows = LocalWork(epochs=1, batch_size=4), toys.rows(12)
    results = [
        train(
            toys.bench(
                tiny_bert,
                toys.classifier,
                dropout=0.3,
                machine=Machine(device="cpu", gradient_checkpointing=on),
            ),
            rows,
            work,
        )
        for on in (False, True)
    ]
    assert results[0].adapter.digest == results[1].adapter.digest


@pytest.mark.parametrize("on", [False, True])
def test_checkpointing_really_recomputes(on: bool, tiny_llama: Path, toys: Any) -> None:
    """In one step a layer runs twice where activations are recomputed, once where they are kept."""
    machine = Machine(device="cpu", gradient_checkpointing=on, padding_free=False)
    bench = toys.bench(tiny_llama, toys.causal, machine=machine)
    calls: list[int] = []
    # Before the layer's end: recomputation stops as soon as the last tensor that it needs is there.
    bench.base.model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    train(bench, toys.rows(4), LocalWork(steps=1, batch_size=4))
    assert len(calls) == (2 if on else 1)


def test_equal_inputs_give_equal_bits_whatever_ran_before(bert: Workbench, toys: Any) -> None:
    """Site B alone, and B after A and after foreign draws, with dropout: the same adapter."""
    rows, others = toys.rows(12), toys.rows(9, seed=5)
    work = LocalWork(epochs=2, batch_size=4, optimiser_state="keep")
    alone = train(bert, rows, work, site="b")
    train(bert, others, work, site="a")
    torch.rand(17)
    after = train(bert, rows, work, site="b")
    assert alone.adapter.digest == after.adapter.digest
    assert alone == replace(after, adapter=alone.adapter, optimiser_state=alone.optimiser_state)
    assert alone.adapter.digest != train(bert, rows, work, site="c").adapter.digest
    assert alone.adapter.digest != train(bert, rows, work, site="b", round=2).adapter.digest


def test_a_round_leaves_the_process_as_it_was(bert: Workbench, toys: Any) -> None:
    """Random state, evaluation mode, gradients and what trains are put back."""
    state = torch.random.get_rng_state()
    names = [spec.name for spec in bert.layout.tensors]
    train(bert, toys.rows(8), LocalWork(epochs=1), rules=LocalRules(frozen=frozenset(names[:3])))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not bert.model.training
    assert all(p.grad is None and p.requires_grad for p in bert.parameters().values())


def test_a_round_is_the_plain_loop_bit_for_bit(
    llama: Workbench, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twin in bare PyTorch over the same padded batches: AdamW, clipping, a cosine with warm-up."""
    monkeypatch.setattr(llama.padding, "wanted", False)
    rows = toys.rows(20)
    work = LocalWork(epochs=1.5, batch_size=6, weight_decay=0.1, learning_rate=3e-3, max_grad_norm=0.5)
    found = train(llama, rows, work, round=2)

    llama.load_adapter(llama.initial_adapter())
    parameters = [p for p in llama.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1, fused=True)
    llama.model.train()
    for batch in plan_batches(len(rows), work, generator(11, Purpose.SHUFFLE, round=2, site="alpha")):
        chosen = [rows[index] for index in batch]
        optimiser.zero_grad()
        losses = llama.task.example_losses(llama.model, llama.task.collate(chosen, llama.data))
        torch.autograd.backward(losses.sum() / sum(map(llama.task.targets, chosen)))
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimiser.step()
    optimiser.zero_grad()
    llama.model.train(False)
    assert found.adapter.digest == llama.read_adapter().digest
    assert found.adapter.digest != llama.initial_adapter().digest


def test_the_counts_are_of_rows_terms_and_nats(llama: Workbench, toys: Any) -> None:
    """Rows without a target do not count; targets and loss are over all passes; one step's loss is exact."""
    rows = toys.rows(10)
    blank = EncodedText(tokens=rows[0].tokens, targets=np.full_like(rows[0].tokens, -100))
    result = train(llama, [blank, *rows, blank], LocalWork(epochs=2, batch_size=4, learning_rate=1e-9))
    assert result.examples == 10
    assert result.steps == 6
    terms = sum(map(llama.task.targets, rows))
    assert result.targets == 2 * terms
    with torch.no_grad():
        losses = llama.task.example_losses(llama.model, llama.task.collate(rows, llama.data))
    assert result.loss_sum == pytest.approx(2 * float(losses.sum()), rel=1e-5)
    assert 5 < result.loss_sum / result.targets < 7
    assert result.optimiser_state is None


def test_training_lowers_the_loss(bert: Workbench, toys: Any) -> None:
    """Thirty steps on few rows learn them."""
    rows = toys.rows(6)
    result = train(bert, rows, LocalWork(steps=40, batch_size=6, learning_rate=1e-2))
    assert mean_loss(bert, rows, result.adapter) < 0.6 * mean_loss(bert, rows, bert.initial_adapter())


def test_packed_rows_are_counted_one_by_one() -> None:
    """Each position that restarts at zero begins a row."""
    tokens = np.arange(6, dtype=np.int32)
    assert rows_in(EncodedText(tokens=tokens, positions=np.array([0, 1, 0, 1, 2, 0], np.int32))) == 3
    assert rows_in(EncodedText(tokens=tokens)) == 1


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_step(where: str, llama: Workbench, toys: Any) -> None:
    """The third batch is poisoned: the error names step and site, the adapter is that of two steps."""
    rows, work = toys.rows(16), LocalWork(steps=4, batch_size=4)
    calls = 0

    class Poisoned:
        peft_task_type = "CAUSAL_LM"
        targets = staticmethod(llama.task.targets)
        collate = staticmethod(llama.task.collate)

        @staticmethod
        def example_losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            nonlocal calls
            calls += 1
            losses = llama.task.example_losses(model, batch)
            if calls != 3:
                return losses
            # The root's value at zero is finite, its gradient is not.
            return losses * torch.nan if where == "loss" else losses + (losses - losses).sqrt()

    two_steps = train(llama, rows, LocalWork(steps=2, batch_size=4))
    with pytest.raises(TrainingError, match="'alpha' is not finite at step 3") as caught:
        train(replace(llama, task=cast("Task", Poisoned())), rows, work)
    assert caught.value.code == "non_finite_loss"
    assert llama.read_adapter().digest == two_steps.adapter.digest
    assert not llama.model.training
    assert all(p.grad is None for p in llama.parameters().values())


def test_a_site_without_rows_is_a_named_error(llama: Workbench, toys: Any) -> None:
    """No rows, or none with a target."""
    blank = replace(toys.rows(1)[0], targets=np.full(2, -100, np.int32), tokens=np.zeros(2, np.int32))
    for rows in ([], [blank, blank]):
        with pytest.raises(TrainingError, match="'alpha' has no row") as caught:
            train(llama, rows, LocalWork(epochs=1))
        assert caught.value.code == "no_rows"


def test_frozen_tensors_do_not_move_and_the_others_do(llama: Workbench, toys: Any) -> None:
    """All A frozen: every B moves, no A does, not even by weight decay."""
    a = frozenset(spec.name for spec in llama.layout.tensors if spec.role == "lora_a")
    before = noise(llama)
    work = LocalWork(steps=2, batch_size=8, weight_decay=0.5)
    after = train(llama, toys.rows(16), work, before=before, rules=LocalRules(frozen=a)).adapter
    for spec in llama.layout.tensors:
        assert np.array_equal(after[spec.name], before[spec.name]) == (spec.name in a), spec.name


def test_freezing_everything_is_a_named_error(llama: Workbench, toys: Any) -> None:
    """A round in which nothing trains is a strategy's mistake."""
    rules = LocalRules(frozen=frozenset(spec.name for spec in llama.layout.tensors))
    with pytest.raises(TrainingError, match="froze every tensor"):
        train(llama, toys.rows(4), LocalWork(steps=1), rules=rules)


def test_an_offset_is_added_to_every_gradient(llama: Workbench, toys: Any) -> None:
    """One SGD step: θ₁ = θ₀ − η (g + c)."""
    rows, before, offset = toys.rows(8), noise(llama), noise(llama, 4)
    plain = train(llama, rows, SGD, before=before).adapter.vector
    with_offset = train(
        llama, rows, SGD, before=before, rules=LocalRules(gradient_offset=offset)
    ).adapter.vector
    np.testing.assert_allclose(with_offset, plain - 0.5 * offset.vector, atol=1e-7)


def test_the_proximal_term_pulls_back_to_the_start(llama: Workbench, toys: Any) -> None:
    """Two SGD steps by hand: g₂ at θ₁ plus μ (θ₁ − θ₀); at the start it is zero."""
    rows, before, mu = toys.rows(8), noise(llama), 0.7

    def after(steps: int, proximal: float) -> Any:
        rules = LocalRules(proximal=proximal)
        return train(llama, rows, replace_steps(SGD, steps), before=before, rules=rules).adapter.vector

    assert np.array_equal(after(1, mu), after(1, 0.0))
    by_hand = after(2, 0.0) - 0.5 * mu * (after(1, 0.0) - before.vector)
    np.testing.assert_allclose(after(2, mu), by_hand, atol=1e-7)


def replace_steps(work: LocalWork, steps: int) -> LocalWork:
    """The same work for another number of steps."""
    return work.model_copy(update={"steps": steps})


def test_the_gradient_is_clipped_to_its_norm(llama: Workbench, toys: Any) -> None:
    """An SGD step with rate 0.5 and bound 0.01 is 0.005 long, and points where it did."""
    rows, before = toys.rows(8), noise(llama)
    free = train(llama, rows, SGD, before=before).adapter.vector - before.vector
    bounded = SGD.model_copy(update={"max_grad_norm": 0.01})
    step = train(llama, rows, bounded, before=before).adapter.vector - before.vector
    assert np.linalg.norm(step) == pytest.approx(0.005, rel=1e-3)
    assert step @ free / np.linalg.norm(step) / np.linalg.norm(free) == pytest.approx(1, abs=1e-4)


def test_kept_optimiser_state_continues_where_it_stopped(llama: Workbench, toys: Any) -> None:
    """With `keep` a second round takes up the moments; with `reset` it does not, even if they are given."""
    rows = toys.rows(8)
    keep = LocalWork(steps=3, batch_size=8, optimiser_state="keep")
    first = train(llama, rows, keep)
    assert first.optimiser_state
    names = {key.partition("//")[0] for key in first.optimiser_state}
    assert names == {spec.name for spec in llama.layout.tensors}
    second = {"before": first.adapter, "round": 2}
    kept = train(llama, rows, keep, **second, optimiser_state=first.optimiser_state)
    fresh = train(llama, rows, keep, **second)
    reset = LocalWork(steps=3, batch_size=8)
    given = train(llama, rows, reset, **second, optimiser_state=first.optimiser_state)
    assert kept.adapter.digest != fresh.adapter.digest
    assert given.adapter.digest == fresh.adapter.digest
    assert kept.optimiser_state
    steps = {float(value) for key, value in kept.optimiser_state.items() if key.endswith("//step")}
    assert steps == {6.0}


def test_moments_of_frozen_tensors_wait_for_their_turn(llama: Workbench, toys: Any) -> None:
    """A method that trains A and B in turn loses neither's state."""
    a = frozenset(spec.name for spec in llama.layout.tensors if spec.role == "lora_a")
    keep = LocalWork(steps=2, batch_size=8, optimiser_state="keep")
    first = train(llama, toys.rows(8), keep)
    second = train(
        llama, toys.rows(8), keep, rules=LocalRules(frozen=a), round=2, optimiser_state=first.optimiser_state
    )
    assert first.optimiser_state is not None
    assert second.optimiser_state is not None
    for key, value in second.optimiser_state.items():
        same = np.array_equal(value, first.optimiser_state[key])
        assert same == (key.partition("//")[0] in a), key


def test_the_schedule_reaches_the_optimiser(llama: Workbench, toys: Any) -> None:
    """A step inside a warm-up goes as far as the schedule says, the first one included."""
    rows = toys.rows(8)

    def moved(schedule: Schedule) -> np.ndarray[Any, Any]:
        work = LocalWork(steps=1, batch_size=8, optimiser="sgd", learning_rate=1.0, schedule=schedule)
        return train(llama, rows, work, rounds=1).adapter.vector - llama.initial_adapter().vector

    full, warm = moved(Schedule()), moved(Schedule(warmup=0.8))
    assert np.abs(full).max() > 1e-3
    np.testing.assert_allclose(warm, full * 0.5 / 0.8, rtol=1e-3, atol=1e-7)


def test_a_bfloat16_base_trains_a_float32_adapter(tiny_llama: Path, toys: Any) -> None:
    """The loss falls, and the adapter is not rounded to the base's precision."""
    bench = toys.bench(tiny_llama, toys.causal, dtype="bfloat16")
    rows = toys.rows(6)
    result = train(bench, rows, LocalWork(steps=20, batch_size=6, learning_rate=1e-2))
    assert mean_loss(bench, rows, result.adapter) < mean_loss(bench, rows, bench.initial_adapter())
    vector = torch.from_numpy(result.adapter.vector)
    assert not torch.equal(vector.bfloat16().float(), vector)


def test_a_real_model_learns_real_tokens(toys: Any, shared_data: Path) -> None:
    """stories260k-llama, eight steps on one story: the loss falls by a quarter."""
    bench = toys.bench(shared_data / "models" / "stories260k-llama", toys.causal)
    text = (
        "The patient came with chest pain. The doctor listened to the heart and said: rest and drink water. "
    )
    tokens = np.array(bench.tokenizer(text * 2)["input_ids"], dtype=np.int32)
    row = EncodedText(tokens=tokens, targets=tokens)
    result = train(bench, [row] * 4, LocalWork(steps=8, batch_size=4, learning_rate=1e-2))
    assert mean_loss(bench, [row], result.adapter) < 0.75 * mean_loss(bench, [row], bench.initial_adapter())
