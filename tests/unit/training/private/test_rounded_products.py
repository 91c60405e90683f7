"""Gradients by example over a base whose products are rounded to bfloat16."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.training.settings import Machine


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "llama-dora"])
def test_rows_of_a_batch_are_those_of_one_example_after_the_other(
    family: str, checkpointing: bool, opened: Any, toys: Any, rows_of_gradients: Any
) -> None:
    """To rounding: a row's product does not depend on what lies beside it, but the order of its sums may.

    In float32 the two agree to 1e-6 or so.
    """
    machine = Machine(device="cpu", precision="bf16", gradient_checkpointing=checkpointing)
    family, _, dora = family.partition("-")
    options = {"dora": bool(dora), "bias": "all" if family == "gpt2" else "none"}
    bench = opened(family, machine=machine, **options)
    rows = toys.rows(5)
    found = rows_of_gradients.fast(bench, rows)
    assert rows_of_gradients.error(found, rows_of_gradients.slow(bench, rows)) < 5e-3
