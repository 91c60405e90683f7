"""A task on images and a preference task, each one file, through the code that trains texts.

The image task is the one that docs/extending.md shows; its model folder holds no tokenizer.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from wardround.core.errors import ModelError
from wardround.core.metrics import METRICS
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    StrategySpec,
    TaskSpec,
)
from wardround.strategies.contract import LocalRules
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.base_model import BaseModelConfig
from wardround.training.commands import read_processor
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.examples import Example, read_examples
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.merge import merge_adapter
from wardround.training.planning import make_plan
from wardround.training.processors import NOTHING
from wardround.training.source_spec import SourceSpec
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Encoded, Task
from wardround.training.workbench import Machine, Workbench, open_workbench, with_tokenizer

LABELS = ("dark", "light")
SIDE = 8
CPU = Machine(device="cpu", microbatch_size=3)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The task of the page, by its dotted path."""
    (block,) = re.findall(r"```python file=ward_images.py\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "ward_images.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ward_images", raising=False)
    importlib.invalidate_caches()
    return TASKS.get("ward_images:TASK", allow_dotted=True)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image model whose folder holds weights and configuration, and nothing for texts."""
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIDE,
        patch_size=4, num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(4)
        ViTForImageClassification(config).save_pretrained(folder)
    assert not list(folder.glob("*token*"))
    return folder


def image_source(folder: Path) -> SourceSpec:
    """Twenty images, dark and light, and one row that is none."""
    rng = np.random.default_rng(2)
    rows = [
        {"x": (0.6 * rng.random((SIDE, SIDE)) + 0.4 * light).round(3).tolist(), "y": LABELS[light]}
        for light in (0, 1) * 10
    ]
    lines = [json.dumps(row) for row in [*rows, {"x": [1.0, 2.0], "y": "light"}]]
    (folder / "images.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return SourceSpec(path=str(folder / "images.jsonl"))


def preferences(folder: Path) -> SourceSpec:
    """Prompts of several lengths with a good and a bad answer."""
    rows = [
        {"p": f"{'Does it hurt? ' * (i % 3 + 1)}", "good": "Yes, a little.", "bad": "No." * (i % 4 + 1)}
        for i in range(12)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return SourceSpec(path=str(folder / "pairs.jsonl"))


def opened(folder: Path, task: Task, data: DataContract, **options: Any) -> Workbench:
    """A bench as every run opens it."""
    return open_workbench(
        BaseModelConfig(path=str(folder)), task, data, ADAPTER, LoraOptions(r=2, **options), CPU, seed=3
    )


def losses_around_a_round(
    bench: Workbench, source: SourceSpec, data: DataContract
) -> tuple[float, float, list[Example], list[Encoded]]:
    """Source → examples → plan → encoded rows → one local round; the mean loss before and after it."""
    task = bench.task
    spec = TaskSpec(name=task.name, metrics=task.metric_family)
    read = read_examples(
        source, data, task.required_roles(spec), fault=lambda example: task.fault(example, spec)
    )
    examples = list(read.examples)
    work = LocalWork(epochs=10, batch_size=8, learning_rate=3e-3)
    plan, initial = make_plan(
        bench, name="p", seed=3, task=spec, data=data, adapter_options={}, start_from=None, local=work,
        strategy=StrategySpec(), encoding=Encoding(largest=0.5, most_weight=100), rounds=RoundRules(rounds=1),
        release=ReleaseRule(metric="accuracy", direction="max"),
    )  # fmt: skip
    encoded = task.encode(examples, bench.tokenizer, plan.data, spec)

    def scored() -> float:
        counters = evaluate(
            bench.model, task, spec, plan.data, encoded, batch_size=5, device=bench.device,
            tokenizer=bench.tokenizer,
        )  # fmt: skip
        scores = METRICS.get(spec.metrics).compute(counters, plan.data.labels, spec.options)
        assert scores.support["loss"] == len(examples)
        return scores.values["loss"]

    bench.load_adapter(initial)
    before = scored()
    result = train_locally(
        bench, LocalJob(encoded, initial, work, LocalRules(), round=1, rounds=1, seed_root=3, site="ward")
    )
    assert result.examples == len(examples)
    said = predict_rows(
        bench.model, task, spec, plan.data, examples,
        tokenizer=bench.tokenizer, batch_size=4, device=bench.device,
    )  # fmt: skip
    assert [row["id"] for row in said] == [example.id for example in examples]
    return before, scored(), examples, encoded


def test_an_image_task_is_one_file(images: Task, vit: Path, tmp_path: Path) -> None:
    """No tokenizer anywhere: source, plan, round, scores, saved adapter and a proven merge."""
    data = DataContract(columns={"pixels": "x", "label": "y"}, labels=LABELS)
    bench = opened(vit, images, data)
    assert bench.tokenizer is None
    assert images.processor is NOTHING
    assert bench.data == data
    before, after, examples, encoded = losses_around_a_round(bench, image_source(tmp_path), data)
    assert len(examples) == 20
    assert after < 0.7 * before
    ADAPTER.save(bench.model, tmp_path / "adapter", "vit")
    report = merge_adapter(
        tmp_path / "adapter", bench.base.config, ADAPTER, images, data, tmp_path / "merged",
        samples=encoded[:2],
    )  # fmt: skip
    assert report.passed
    assert report.changed_modules > 0


def test_a_head_for_other_labels_federates(images: Task, vit: Path) -> None:
    """Three labels on a checkpoint with two: its head is fresh, trains in full, and holds no LoRA."""
    data = DataContract(columns={}, labels=(*LABELS, "grey"))
    bench = opened(vit, images, data)
    assert bench.base.missing_heads == ("classifier",)
    names = {spec.name for spec in bench.layout.tensors if "classifier" in spec.name}
    assert names == {"base_model.model.classifier.bias", "base_model.model.classifier.weight"}


def test_a_preference_task_is_one_file(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sequences a row, one loss: the model comes to prefer what people did."""
    data = DataContract(
        columns={"prompt": "p", "chosen": "good", "rejected": "bad"},
        labels=("worse", "better"),
        max_length=40,
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    bench = opened(tiny_llama, TASKS.get("preference:TASK", allow_dotted=True), data)
    assert bench.data.tokenizer_digest
    before, after, examples, encoded = losses_around_a_round(bench, preferences(tmp_path), data)
    assert len(examples) == 12
    assert before == pytest.approx(np.log(2), abs=1e-5)  # nothing is preferred before anything is learnt
    assert after < 0.5 * before
    lines = bench.task.collate(encoded[:3], bench.data)["input_ids"]
    assert lines.shape[0] == 6
    assert bench.task.example_losses(bench.model, bench.task.collate(encoded[:3], bench.data)).shape == (3,)


class Scaling:
    """A processor of a task's own: the mean that is taken off every pixel."""

    def load(self, path: str, **keywords: Any) -> float:
        """From a file beside the model."""
        return float(json.loads((Path(path) / "scaling.json").read_text())["mean"])

    def settle(self, loaded: float, model: PreTrainedModel, name: str) -> None:
        """It has to be a share of full light."""
        if not 0 <= loaded <= 1:
            raise ModelError(f"the images of {name!r} are scaled in an unknown way")

    def contract(self, loaded: float, model: torch.nn.Module) -> dict[str, Any]:
        """Its digest stands where that of a tokenizer would."""
        return {"tokenizer_digest": hashlib.sha256(repr(loaded).encode()).hexdigest()}

    def save(self, loaded: float, folder: Path) -> None:
        """As it is loaded."""
        (folder / "scaling.json").write_text(json.dumps({"mean": loaded}))


def test_a_task_may_bring_its_own_processor(
    images: Task, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded with the model, its digest is in the contract, a site with another is refused."""
    monkeypatch.setattr(type(images), "processor", Scaling())
    data = DataContract(columns={"pixels": "x", "label": "y"}, labels=LABELS)
    with pytest.raises(ModelError, match="cannot be loaded"):
        opened(vit, images, data)
    folders = []
    for mean in (0.25, 0.5, 7.0):
        folders.append(tmp_path / f"vit {mean}")
        ViTForImageClassification.from_pretrained(vit).save_pretrained(folders[-1])
        Scaling().save(mean, folders[-1])
    first, second = (opened(folder, images, data) for folder in folders[:2])
    assert first.tokenizer == 0.25
    assert first.data.tokenizer_digest != second.data.tokenizer_digest
    with pytest.raises(ModelError, match="not the one of the plan"):
        with_tokenizer(first.data, second.base, images)
    with pytest.raises(ModelError, match="unknown way"):
        opened(folders[2], images, data)
    first.load_adapter(first.fresh.with_vector(np.full(first.layout.size, 0.1, np.float32)))
    ADAPTER.save(first.model, tmp_path / "adapter", "vit")
    source = read_examples(image_source(tmp_path), data, {"pixels": True, "label": True})
    samples = images.encode(source.examples[:2], first.tokenizer, first.data, TaskSpec(name=images.name))
    merge_adapter(
        tmp_path / "adapter", first.base.config, ADAPTER, images, data, tmp_path / "merged", samples=samples
    )
    merged = str(tmp_path / "merged")
    assert read_processor(images.processor, merged, remedy="correct it") == 0.25
    with pytest.raises(ModelError, match="cannot be loaded"):
        read_processor(images.processor, str(vit), remedy="correct it")
    assert read_processor(NOTHING, str(vit), remedy="correct it") is None
