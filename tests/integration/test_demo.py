"""The demo as `make demo` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wardround.simulations.demo.demo import former_demo, run_demo


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_shows_what_federation_buys(tmp_path: Path) -> None:
    """Federated beats the mean local-only on everybody's patients; the merged model is there and agrees."""
    result = run_demo(tmp_path / "demo", seed=0)
    federated = result.federated.test["test"].values
    local = [bound.test["test"].values for name, bound in result.bounds.items() if name.startswith("local/")]
    assert len(local) == 4
    for metric in ("accuracy", "macro_f1", "auroc"):
        assert federated[metric] > sum(values[metric] for values in local) / 4
    assert (tmp_path / "demo" / "merged" / "model.safetensors").stat().st_size > 80_000_000
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_replaces_only_its_own_former_run(tmp_path: Path) -> None:
    """Another run's folder, or anything else, is not the demo's to delete."""
    for name, folder in (("demo", tmp_path / "mine"), ("thesis", tmp_path / "other")):
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps({"name": name}))
    assert former_demo(tmp_path / "mine")
    assert not former_demo(tmp_path / "other")
    assert not former_demo(tmp_path / "nowhere")
