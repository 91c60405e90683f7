"""A clipped step by units against the same plain LoRA step, and against Opacus' ways to the same sum.

    python benchmarks/private_step.py [--models llama minilm] [--tokens 64 128 512] [--ranks 8 64]
                                      [--examples 32] [--repeats 7] [--threads 1]

Contenders: `plain` (gradient of the sum, no clipping by example), `ours`, and Opacus' `hooks`, `functorch`
and `ghost`. Each first gives its clipped sum of one batch, which has to be ours, and ours without clipping
has to be the plain gradient. Then all are timed in turn in one run, and the medians of the ratios to `plain`
of the same turn are printed; peak memory over the model is that of a process of its own (of the device on
CUDA). Every example is its own unit; random weights, random tokens of one length.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from wardround.training.private.clipping import Flat
from wardround.training.private.per_example import record_gradients
from wardround.training.private.units import ClippedSum

BOUND = 0.1
VOCABULARY = 4096
CONTENDERS = ("plain", "ours", "hooks", "functorch", "ghost")
TOLERANCE = 1e-4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

OPEN = ExitStack()
"""Recordings stay open while the process lives, as over a local round."""

Sum = Callable[[], torch.Tensor]
"""Runs the model forward and backward and gives the flat (clipped) sum, (P,)."""


def build(model: str, rank: int) -> Any:
    """The model with LoRA on its linear layers, no dropout, factors that are not zero."""
    torch.manual_seed(0)
    if model == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, use_cache=False,
        )  # fmt: skip
        base: Any = LlamaForCausalLM(config)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapter = LoraConfig(r=rank, target_modules=names)
    else:
        small = BertConfig(
            vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1536, num_hidden_layers=6,
            num_attention_heads=12, max_position_embeddings=1024, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
        )  # fmt: skip
        base = BertForSequenceClassification(small)
        names = ["query", "key", "value", "dense"]
        adapter = LoraConfig(r=rank, target_modules=names, modules_to_save=["classifier"])
    adapted: Any = get_peft_model(base, adapter)
    for parameter in trained(adapted).values():
        nn.init.normal_(parameter, std=0.02)
    return adapted.to(DEVICE).train()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name, in the order of names."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def losses_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss of each example, (examples,)."""
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    if logits.ndim == 3:
        scores = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return scores.mean(1)
    return F.cross_entropy(logits, tokens[:, 0] % 2, reduction="none")


def contender(name: str, model: Any, tokens: torch.Tensor, bound: float) -> Sum:
    """One way to the sum; opens what it needs and leaves it open."""
    if name == "ours":
        parameters = trained(model)
        gradients = OPEN.enter_context(record_gradients(model, parameters))

        def ours() -> torch.Tensor:
            rows, _ = gradients.of(lambda: losses_of(model, tokens), len(tokens))
            total = ClippedSum(gradients.size, Flat(bound), DEVICE)
            total.add(rows, range(len(tokens)))
            return total.close().total

        return ours
    parameters = trained(model)

    def flat() -> torch.Tensor:
        whole = torch.cat([p.grad.reshape(-1) for p in parameters.values()])  # type: ignore[union-attr]  # backward ran
        for p in parameters.values():
            p.grad = None
        return whole

    if name == "plain":

        def plain() -> torch.Tensor:
            losses_of(model, tokens).sum().backward()
            return flat()

        return plain
    return opacus_way(name, model, tokens, bound, flat)


def opacus_way(name: str, model: Any, tokens: torch.Tensor, bound: float, flat: Sum) -> Sum:
    """Opacus' own modules, clipped as its optimiser clips."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    parameters = list(trained(model).values())
    if name == "ghost":
        ghost = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=bound, use_ghost_clipping=True, loss_reduction="sum", strict=False
        )

        def ghostly() -> torch.Tensor:
            losses = losses_of(ghost, tokens)
            losses.sum().backward(retain_graph=True)
            factors = ghost.get_clipping_coef()
            for p in parameters:
                p.grad = None
            ghost.disable_hooks()
            (factors * losses).sum().backward()
            ghost.enable_hooks()
            return flat()

        return ghostly
    hooked = GradSampleModule(model, loss_reduction="sum", strict=False, force_functorch=name == "functorch")

    def by_sample() -> torch.Tensor:
        losses_of(hooked, tokens).sum().backward()
        samples = [p.grad_sample.flatten(1) for p in parameters]  # type: ignore[attr-defined]  # Opacus sets it
        norms = torch.stack([sample.norm(dim=1) for sample in samples]).norm(dim=0)
        factors = (bound / (norms + 1e-6)).clamp(max=1)
        whole = torch.cat([factors @ sample for sample in samples])
        for p in parameters:
            p.grad_sample = p.grad = None  # type: ignore[attr-defined]  # Opacus sets it
        return whole

    return by_sample


def step(model: nn.Module, total: torch.Tensor, examples: int) -> None:
    """Plain SGD with the sum; the rate is zero, so that every repeat computes the same."""
    start = 0
    with torch.no_grad():
        for parameter in trained(model).values():
            part = total[start : start + parameter.numel()].view_as(parameter).to(parameter.dtype)
            parameter.add_(part, alpha=-0.0 / examples)
            start += parameter.numel()


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def require_equal(sums: dict[str, Sum], model: str, rank: int, tokens: torch.Tensor) -> dict[str, Sum]:
    """Those that run; all that run have to agree with ours, and ours unclipped with the plain gradient."""
    ours = sums["ours"]().double()
    unclipped = contender("ours", build(model, rank), tokens, 1e9)().double()
    running = {"ours": sums["ours"], "plain": sums["plain"]}
    for name, run in sums.items():
        if name == "ours":
            continue
        try:
            found = run().double()
        except Exception as error:  # noqa: BLE001 - whatever Opacus raises is a result
            print(f"  {name} does not run: {type(error).__name__}: {str(error)[:90]}")
            continue
        expected = unclipped if name == "plain" else ours
        error_of = float((found - expected).norm() / expected.norm())
        assert error_of < TOLERANCE, (name, error_of)
        running[name] = run
    return running


def peak_mib(options: argparse.Namespace, name: str, model: str, tokens: int, rank: int) -> float:
    """Of two steps in a process of its own, over what it held before them."""
    arguments = [
        "--inside", name, "--models", model, "--tokens", tokens, "--ranks", rank,
        "--examples", options.examples, "--threads", options.threads,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def forget_peak() -> None:
    """Start the peak at what is held now; Linux does it by `clear_refs`, see proc(5)."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def held_mib() -> float:
    """Peak since then: of the device on CUDA, of the process elsewhere."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def inside(options: argparse.Namespace) -> None:
    """Print one contender's peak."""
    adapted = build(options.models[0], options.ranks[0])
    tokens = torch.randint(1, VOCABULARY, (options.examples, options.tokens[0]), device=DEVICE)
    with torch.no_grad():
        losses_of(adapted, tokens[:1, :2])  # libraries load their kernels; hooks are not there yet
    run = contender(options.inside, adapted, tokens, BOUND)
    forget_peak()
    before = held_mib()
    for _ in range(2):
        step(adapted, run(), options.examples)
    print(held_mib() - before)


def compare(options: argparse.Namespace, model: str, tokens: int, rank: int) -> None:
    """One line for each contender of one configuration."""
    print(f"{model} B{options.examples} T{tokens} r{rank}, {options.threads} thread(s), {DEVICE}")
    torch.manual_seed(1)
    batch = torch.randint(1, VOCABULARY, (options.examples, tokens), device=DEVICE)
    models = {name: build(model, rank) for name in CONTENDERS}
    sums = {name: contender(name, models[name], batch, BOUND) for name in CONTENDERS}
    running = require_equal(sums, model, rank, batch)
    names = [name for name in CONTENDERS if name in running]
    turns: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run = running[name]
            took = seconds(lambda run=run, name=name: step(models[name], run(), options.examples))  # type: ignore[misc]  # bound at once
            if turn:
                turns[name].append(took)
    plain_peak = peak_mib(options, "plain", model, tokens, rank)
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(turns[name], turns["plain"], strict=True))
        peak = plain_peak if name == "plain" else peak_mib(options, name, model, tokens, rank)
        print(
            f"  {name:10} {statistics.median(turns[name]):7.3f} s  time {ratio:5.2f}  "
            f"peak {peak:6.0f} MiB  {peak / max(plain_peak, 0.1):5.2f}"
        )


def main() -> None:
    """All configurations that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]  # it has one
    parser.add_argument("--models", nargs="+", choices=("llama", "minilm"), default=["llama", "minilm"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128, 512])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inside", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Full backward hook is firing|`is_gradient_checkpointing`")
    if options.inside:
        inside(options)
        return
    for model in options.models:
        for tokens in options.tokens:
            for rank in options.ranks:
                compare(options, model, tokens, rank)


if __name__ == "__main__":
    main()
