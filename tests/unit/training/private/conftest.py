"""Benches with an adapter that is not zero, and the slow twin: one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.training.private import gradient
from wardround.training.private.clipping import Clipping, Flat
from wardround.training.private.gradient import PrivateGradients, private_gradients
from wardround.training.private.per_example import ExampleGradients, record_gradients
from wardround.training.private.sampling import PoissonBatch, PoissonSampler
from wardround.training.workbench import Workbench


def losses_of(bench: Workbench, rows: Sequence[Any]) -> torch.Tensor:
    """The mean loss of each example over its own targets, (examples,)."""
    counts = torch.tensor([float(bench.task.targets(row)) for row in rows])
    return bench.task.example_losses(bench.model, bench.task.collate(rows, bench.data)) / counts


def stirred(bench: Workbench, seed: int = 0) -> Workbench:
    """Random numbers around the fresh adapter, so that every factor has a gradient; training mode."""
    fresh = bench.initial_adapter()
    shake = np.random.default_rng(seed).normal(0, 0.05, bench.layout.size).astype(np.float32)
    bench.load_adapter(fresh.with_vector(fresh.vector + shake))
    bench.model.train()
    return bench


def one_by_one(
    bench: Workbench, rows: Sequence[Any], losses: Callable[..., torch.Tensor] = losses_of
) -> torch.Tensor:
    """The slow twin (lines, P): autograd on a batch of one, in the layout's order."""
    parameters = dict(sorted(bench.parameters().items()))
    found = []
    for row in rows:
        losses(bench, [row]).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        found.append(torch.cat([grad.reshape(-1).float() for grad in grads]))
        for parameter in parameters.values():
            parameter.grad = None
    return torch.stack(found)


def recorded(gradients: ExampleGradients, bench: Workbench, rows: Sequence[Any]) -> torch.Tensor:
    """Rows of one microbatch, copied."""
    return gradients.of(lambda: losses_of(bench, rows), len(rows))[0].clone()


def all_at_once(bench: Workbench, rows: Sequence[Any]) -> torch.Tensor:
    """What one forward and one backward give, (lines, P)."""
    with record_gradients(bench.model, bench.parameters()) as gradients:
        return recorded(gradients, bench, rows)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The worst row's ‖found − expected‖ / ‖expected‖."""
    lengths = expected.norm(dim=1)
    assert (lengths > 0).all()
    return float(((found - expected).norm(dim=1) / lengths).max())


@pytest.fixture(scope="session")
def rows_of_gradients() -> Any:
    """The functions above."""
    return SimpleNamespace(
        losses=losses_of, stirred=stirred, slow=one_by_one, fast=all_at_once, of=recorded, error=difference
    )


@pytest.fixture(scope="session")
def folders(
    tiny_llama: Path, tiny_bert: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The tiny models by family; Llama with embeddings of their own, which alone can be adapted."""
    untied = tmp_path_factory.mktemp("private") / "untied_llama"
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(untied)
    config = AutoConfig.from_pretrained(tiny_llama)
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(21)
        LlamaForCausalLM(config).save_pretrained(untied)
    return {"llama": untied, "bert": tiny_bert, "gpt2": tiny_gpt2}


def _without_dropout(bench: Any) -> Any:
    """Masks of a batch are not those of its rows one by one."""
    for module in bench.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        if hasattr(module, "attn_dropout") and isinstance(module.attn_dropout, nn.Dropout):
            module.attn_dropout.p = 0.0
    return bench


@pytest.fixture
def opened(folders: dict[str, Path], toys: Any, rows_of_gradients: Any) -> Any:
    """`opened(family, **options)`: a stirred bench without dropout, in training mode."""

    def make(family: str, **options: Any) -> Any:
        task = toys.classifier if family == "bert" else toys.causal
        bench = toys.bench(folders[family], task, base_dropout="off", **options)
        return _without_dropout(rows_of_gradients.stirred(bench))

    return make


class Seeded:
    """Words from a seed, which may claim that they are none of a seed."""

    def __init__(self, seed: int, *, repeatable: bool = True) -> None:
        self.repeatable = repeatable
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> np.ndarray:
        """The next so many."""
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


@pytest.fixture(scope="session")
def seeded() -> type[Seeded]:
    """The class above."""
    return Seeded


class Stepping:
    """Opens private gradients over a bench, and draws batches of all rows or of some."""

    exact: ClassVar[dict[str, Any]] = {"noise": False, "bound": 1e4}
    """Clips nothing, and adds nothing."""

    @contextmanager
    def open(
        self, bench: Workbench, rows: Sequence[Any], clipping: Clipping | None = None, **options: Any
    ) -> Iterator[PrivateGradients]:
        """Options: noise, rate, sigma, bound, steps, expected, seed, source, parameters, simulation."""
        mechanism = SampledGaussian(
            sample_rate=options.get("rate", 1.0),
            sigma=options.get("sigma", 1.0),
            steps=options.get("steps", 9),
        )
        with (
            pytest.MonkeyPatch.context() as patch,
            private_gradients(
                bench, options.get("parameters") or bench.parameters(), rows, mechanism,
                clipping or Flat(options.get("bound", 1.0)), expected_batch=options.get("expected", 1.0),
                source=options.get("source") or Seeded(options.get("seed", 0)),
                simulation=options.get("simulation", True),
            ) as steps,
        ):  # fmt: skip
            if not options.get("noise", True):
                patch.setattr(gradient, "add_noise", lambda total, *_: total)
            yield steps

    def batch(self, units: Sequence[Any], rate: float = 1.0, seed: int = 0) -> PoissonBatch:
        """A draw; of all rows at a rate of one."""
        return PoissonSampler(units, rate, Seeded(seed)).draw()

    def written(self, bench: Workbench) -> torch.Tensor:
        """What lies in `.grad`, (P,), in the layout's order; taken away."""
        grads = [p.grad for _, p in sorted(bench.parameters().items())]
        for parameter in bench.parameters().values():
            parameter.grad = None
        return torch.cat([grad.reshape(-1) for grad in grads if grad is not None])


@pytest.fixture(scope="session")
def stepping() -> Stepping:
    """The above."""
    return Stepping()
