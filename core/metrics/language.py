"""Metrics of a causal language model and of its answers.

Loss, perplexity, bits per byte, token accuracy; where answers are generated, exact match and ROUGE-L.

Bits per byte compare models whatever their tokenizers: nats under loss / (ln 2 · UTF-8 bytes under loss).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wardround.core.cells import Cells
from wardround.core.metrics.contract import LOSS_UNIT, Scores
from wardround.core.packed import Counters, Layout, TensorSpec, zeros

ROUGE_UNIT = 2.0**-20
"""One step of the summed ROUGE-L counter."""

LARGEST_EXPONENT = 700.0
"""exp() of more overflows a double: a perplexity is capped there, so that reports stay valid JSON."""

TEACHER_FORCED = ("loss", "tokens", "bytes", "correct_tokens")
ANSWERS = ("answers", "exact_answers", "rouge_l")


class Language:
    """Figures of next-token prediction, and of generated answers where the task's options ask for them."""

    directions: dict[str, str] = {  # noqa: RUF012 - the protocol asks for a plain attribute; never written to
        "loss": "min",
        "perplexity": "min",
        "bits_per_byte": "min",
        "token_accuracy": "max",
        "exact_match": "max",
        "rouge_l": "max",
    }

    def left_out(self, options: dict[str, Any]) -> dict[str, str]:
        """The scores of generated answers, where option `generate` is 0."""
        if options.get("generate", 0):
            return {}
        return dict.fromkeys(("exact_match", "rouge_l"), "set task.options.generate above 0")

    def layout(self, labels: tuple[str, ...], options: dict[str, Any]) -> Layout:
        """Scalars only. The answer counters are there where option `generate` is above zero."""
        del labels
        names = TEACHER_FORCED + (ANSWERS if options.get("generate", 0) else ())
        return Layout(tensors=tuple(TensorSpec(name=name, role="counter") for name in names))

    def coarse(self, counters: Counters, cells: Cells, rows: int) -> Counters:
        """Sums over rows keep their means; answers, and the exact ones among them, are counts of rows."""
        count = {name: int(array) for name, array in counters.tensors().items()}
        found = zeros(counters.layout, np.int64)
        for name in TEACHER_FORCED:
            found[name][...] = cells.scaled(count[name], rows)
        if answers := count.get("answers", 0):
            exact = count["exact_answers"]
            right, wrong = cells.table(np.array([exact, answers - exact]))
            found["answers"][...], found["exact_answers"][...] = right + wrong, right
            found["rouge_l"][...] = cells.scaled(count["rouge_l"], answers)
        return found

    def compute(self, counters: Counters, labels: tuple[str, ...], options: dict[str, Any]) -> Scores:
        """Figures from summed counters; loss in nats a token."""
        del labels
        count = {name: int(array) for name, array in counters.tensors().items()}
        values: dict[str, float] = {}
        support: dict[str, int] = {}
        nats = count["loss"] * LOSS_UNIT
        if tokens := count["tokens"]:
            loss = nats / tokens
            values["loss"] = loss
            values["perplexity"] = math.exp(min(loss, LARGEST_EXPONENT))
            values["token_accuracy"] = count["correct_tokens"] / tokens
            support |= dict.fromkeys(("loss", "perplexity", "token_accuracy"), tokens)
        if size_bytes := count["bytes"]:
            values["bits_per_byte"] = nats / (math.log(2) * size_bytes)
            support["bits_per_byte"] = size_bytes
        if options.get("generate", 0) and (answers := count["answers"]):
            values["exact_match"] = count["exact_answers"] / answers
            values["rouge_l"] = count["rouge_l"] * ROUGE_UNIT / answers
            support |= dict.fromkeys(("exact_match", "rouge_l"), answers)
        return Scores(values, support, {name: self.directions[name] for name in values})


METRICS = Language()
