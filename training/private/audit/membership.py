"""Membership inference on what a run released: can one tell its training rows from others?

The attacker has the released model, the base, and the row. Scores, higher for what looks like a member:

- calibrated: loss under the reference − loss under the released model. What the base makes of a row takes
  away how hard the row is (Fu et al. 2025, LoRA-Leak, arXiv:2507.18302).
- loss: − loss under the released model.
- Min-K%: mean log-probability of the K % least likely tokens (Shi et al. 2023, arXiv:2310.16789); of language
  models alone, and a floor.
- control: − loss under the reference, which has seen no row. Where it tells members from others, the two are
  different populations, and the other figures mean less.

A unit's score is the mean over its rows, so that units are independent of each other. Figures are exact
functions of private rows: for the site's own eyes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from wardround.core.packed import Adapter
from wardround.training.evaluation import evaluating
from wardround.training.private.audit.roc import Separation, separation
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

MIN_K: Final = 0.2
_NO_TARGET: Final = -100
_HARDEST: Final = 1e6
"""Stands for a loss that is not finite: such a row is no member that anybody would find."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Asked:
    """Rows that a model is asked about.

    Attributes:
        rows: Encoded, one row each.
        units: Of each row.
    """

    rows: Sequence[Encoded]
    units: Sequence[str]

    def only(self, kept: Sequence[bool]) -> Asked:
        """Some of them."""
        rows = [row for row, keep in zip(self.rows, kept, strict=True) if keep]
        return Asked(rows, [unit for unit, keep in zip(self.units, kept, strict=True) if keep])


def membership(
    bench: Workbench, released: Adapter, reference: Adapter, members: Asked, others: Asked
) -> dict[str, Separation]:
    """Name of a score → how well it tells members from others.

    A unit that is among the members is left out of the others. The bench's adapter is put back afterwards.

    Args:
        bench: Base model, task.
        released: What the run gave.
        reference: What it began with: for language models, the base itself.
        members: Rows that were trained on.
        others: Rows that were not.

    Raises:
        DataError: Fewer than two units on a side.
    """
    known = set(members.units)
    others = others.only([unit not in known for unit in others.units])
    before = bench.read_adapter()
    try:
        told = [_losses(bench, released, asked) for asked in (members, others)]
        base = [_losses(bench, reference, asked) for asked in (members, others)]
    finally:
        bench.load_adapter(before)
    scores = {
        "calibrated": [easy - loss for (loss, _), (easy, _) in zip(told, base, strict=True)],
        "loss": [-loss for loss, _ in told],
        "control": [-loss for loss, _ in base],
    }
    if _is_causal(bench):
        scores["min-k"] = [floor for _, floor in told]
    return {
        name: separation(_by_unit(ours, members.units), _by_unit(theirs, others.units))
        for name, (ours, theirs) in scores.items()
    }


def _is_causal(bench: Workbench) -> bool:
    return bench.task.peft_task_type == "CAUSAL_LM"


def _by_unit(scores: Floats, units: Sequence[str]) -> Floats:
    """The mean of each unit's rows; rows without a target, which are NaN, count for nothing."""
    found: dict[str, list[float]] = {}
    for score, unit in zip(scores.tolist(), units, strict=True):
        if not math.isnan(score):
            found.setdefault(unit, []).append(score)
    return np.array([sum(each) / len(each) for each in found.values()])


@torch.inference_mode()
def _losses(bench: Workbench, adapter: Adapter, asked: Asked) -> tuple[Floats, Floats]:
    """Mean loss of each row over its targets, and its Min-K%; NaN where there is no target."""
    bench.load_adapter(adapter)
    losses, floors = np.full(len(asked.rows), np.nan), np.full(len(asked.rows), np.nan)
    counts = [bench.task.targets(row) for row in asked.rows]
    order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -asked.rows[i].length)
    size = bench.machine.evaluation_batch_size
    with evaluating(bench.model):
        for start in range(0, len(order), size):
            some = order[start : start + size]
            batch = bench.task.collate([asked.rows[i] for i in some], bench.data)
            tensors = {name: tensor.to(bench.device) for name, tensor in batch.items()}
            found = bench.task.example_losses(bench.model, tensors).float().cpu().double().numpy()
            losses[some] = np.nan_to_num(found / [counts[i] for i in some], nan=_HARDEST, posinf=_HARDEST)
            if _is_causal(bench):
                floors[some] = _min_k(bench, tensors)
    return losses, floors


def _min_k(bench: Workbench, tensors: dict[str, torch.Tensor]) -> Floats:
    """Mean log-probability of each line's least likely targets, a share of `MIN_K` of them."""
    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
    logits = bench.model(**inputs).logits[:, :-1].float()
    labels = tensors["labels"][:, 1:]
    terms = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=_NO_TARGET)
    under_loss = labels != _NO_TARGET
    found = []
    for line, under in zip(terms.cpu().double(), under_loss.cpu(), strict=True):
        each = line[under]
        worst = each.topk(max(1, math.ceil(MIN_K * len(each)))).values if len(each) else each
        found.append(-float(worst.nan_to_num(_HARDEST, _HARDEST).mean()) if len(each) else math.nan)
    return np.array(found)
