"""The shipped experiments on the real sets, made small: they read, train a round and are scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from rich.console import Console

from wardround.simulations.command import run_composed

pytestmark = pytest.mark.usefixtures("without_curves")

SITES = {"pqa_sections": 10, "pqa_sections_skewed": 10, "medabs": 10, "medquad_qtype": 9, "medquad_qa": 9}
METRIC = {"medquad_qa": "bits_per_byte"}


AGAIN = ("medquad_qtype", "pqa_sections")
"""Over the rows of another one."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in AGAIN)) for name in sorted(SITES)]
)
def test_an_experiment_runs_on_the_real_set(name: str, shared_data: Path, tmp_path: Path) -> None:
    """One round on a few rows: every site is there, the release metric comes out with its support.

    Sums are secure, as they are shipped.
    """
    assert shared_data.is_dir()
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose(
            "config",
            overrides=[
                f"experiment={name}", f"output={tmp_path / name}", "rounds.rounds=1", "data.limit=150",
                "local.epochs=null", "local.steps=1", "local.batch_size=4", "data.max_length=32",
                "data.validation_fraction=0", "machine.threads=1", "evaluation.samples=1",
                "+data.test.where={id: " + _some_ids(shared_data, name) + "}",
            ],
        )  # fmt: skip
    result = run_composed(composed, console=Console(quiet=True))
    assert result.summary["secure"]["mode"] == "real"
    assert result.summary["secure"]["exchanges"] == 5
    scores = result.federated.test["test"]
    metric = METRIC.get(name, "macro_f1")
    assert scores.support[metric] > 0
    assert 0 <= scores.values[metric] < 20
    assert len(result.federated.arm.sites) in range(
        SITES[name] - 2, SITES[name] + 1
    )  # few rows: some lie empty


def _some_ids(shared_data: Path, name: str) -> str:
    """Ids of the first test rows, as a list that Hydra's grammar reads."""
    import gzip
    import json

    folder = shared_data / "data" / name.removesuffix("_skewed").split("_q", maxsplit=1)[0]
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        ids = [json.loads(line)["id"] for line, _ in zip(file, range(12), strict=False)]
    return "[" + ",".join(f"'{row}'" for row in ids) + "]"
