"""Language figures from counters, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from wardround.core.metrics import METRICS
from wardround.core.metrics.contract import LOSS_UNIT, Scores
from wardround.core.metrics.language import ROUGE_UNIT
from wardround.core.packed import zeros

FAMILY = METRICS.get("language")


def scores_of(options: dict[str, Any] | None = None, **counts: int) -> Scores:
    """Figures of the counts; what is not given is zero."""
    options = options or {}
    counters = zeros(FAMILY.layout((), options), np.int64)
    for name, value in counts.items():
        counters[name][...] = value
    return FAMILY.compute(counters, (), options)


def test_figures_of_teacher_forcing() -> None:
    """100 tokens at ln 4 nats each in 50 bytes: perplexity 4, two bits a token, four bits a byte."""
    scores = scores_of(
        loss=round(100 * math.log(4) / LOSS_UNIT), tokens=100, bytes=50, correct_tokens=25
    )  # fmt: skip
    assert scores.values == pytest.approx(
        {"loss": math.log(4), "perplexity": 4, "token_accuracy": 0.25, "bits_per_byte": 4}, rel=1e-6
    )
    assert scores.support == {"loss": 100, "perplexity": 100, "token_accuracy": 100, "bits_per_byte": 50}
    lower = {name for name, direction in scores.directions.items() if direction == "min"}
    assert lower == {"loss", "perplexity", "bits_per_byte"}


def test_no_tokens_give_no_figures() -> None:
    """Zeros say nothing."""
    assert scores_of() == Scores({}, {}, {})
    assert scores_of({"generate": 4}) == Scores({}, {}, {})


def test_answer_figures_only_where_answers_are_generated() -> None:
    """The answer counters exist with `generate` above 0 alone, and count answers, not tokens."""
    plain = {spec.name for spec in FAMILY.layout((), {}).tensors}
    off = {spec.name for spec in FAMILY.layout((), {"generate": 0}).tensors}
    scored = {spec.name for spec in FAMILY.layout((), {"generate": 8}).tensors}
    assert plain == off
    assert scored - plain == {"answers", "exact_answers", "rouge_l"}
    scores = scores_of({"generate": 8}, answers=8, exact_answers=2, rouge_l=round(3.2 / ROUGE_UNIT))
    assert scores.values == pytest.approx({"exact_match": 0.25, "rouge_l": 0.4}, abs=1e-6)
    assert scores.support == {"exact_match": 8, "rouge_l": 8}


def test_a_hopeless_model_has_a_perplexity_that_json_can_hold() -> None:
    """Thousands of nats a token overflow exp(); the figure is capped instead of infinite."""
    scores = scores_of(loss=round(5000 / LOSS_UNIT), tokens=1, bytes=1)
    assert math.isfinite(scores.values["perplexity"])
    json.dumps(scores.values, allow_nan=False)


def test_every_figure_has_a_direction() -> None:
    """What `compute` may give is announced in `directions`."""
    scores = scores_of(
        {"generate": 1}, loss=1, tokens=1, bytes=1, correct_tokens=1, answers=1, exact_answers=1, rouge_l=1
    )
    assert set(scores.values) == set(FAMILY.directions)
