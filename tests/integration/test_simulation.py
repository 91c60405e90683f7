"""A whole simulated run on a tiny model: rows to result folder, through Flower's engine."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from wardround.core.errors import ConfigError, DataError, ModelError, WardroundError
from wardround.runtime.events import Event, RoundFolded, SiteReplied
from wardround.simulations.arms import Arm
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation

WORDS = {"calm": "slow breath even sleep rest easy", "acute": "sharp pain fever cough sudden chills"}


def write_rows(path: Path, count: int, seed: int) -> None:
    """Rows that a tiny model can learn: two kinds of words, four wards, several rows a patient."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            label = rng.choice(sorted(WORDS))
            words = rng.choices(WORDS[label].split(), k=rng.randint(3, 9))
            row = {
                "id": f"r{number}", "patient": f"p{number // 3}", "ward": f"ward_{(number // 3) % 4}",
                "note": " ".join(words), "kind": label,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def settings(tmp_path: Path, tiny_bert: Path) -> Callable[..., RunConfig]:
    """A configuration over tiny_bert and made-up notes of four wards; keyword arguments replace sections.

    Where sums are secure, four sites are enough for these.
    """
    write_rows(tmp_path / "rows.jsonl", 60, 1)
    write_rows(tmp_path / "test.jsonl", 40, 2)
    torch.set_num_threads(1)

    def make(name: str = "run", **sections: Any) -> RunConfig:
        base: dict[str, Any] = {
            "name": "notes",
            "seed": 3,
            "output": str(tmp_path / name),
            "model": {"path": str(tiny_bert)},
            "task": {"name": "sequence_classification"},
            "data": {
                "source": {"path": str(tmp_path / "rows.jsonl")},
                "test": {"path": str(tmp_path / "test.jsonl")},
                "columns": {"text": "note", "label": "kind"},
                "id_column": "id", "unit_column": "patient", "site_column": "ward",
                "max_length": 64, "validation_fraction": 0.2,
            },
            "adapter": {"options": {"r": 4, "alpha": 8, "dropout": 0.1}},
            "local": {"epochs": 1, "batch_size": 8, "learning_rate": 2e-2},
            "rounds": {"rounds": 3},
            "release": {"metric": "accuracy", "direction": "max"},
            "machine": {"device": "cpu", "threads": 1},
            "secure": {"mode": "off", "policy": {"least_cohort": 4, "modes": ["real", "accounted", "off"]}},
        }  # fmt: skip
        for key, value in sections.items():
            base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
        return RunConfig.parse(base)

    return make


@pytest.fixture(autouse=True)
def _curves(request: pytest.FixtureRequest) -> None:
    """No picture where no test looks at it."""
    if request.function is not test_the_result_folder_holds_everything_and_the_model_has_learnt:
        request.getfixturevalue("without_curves")


Undisturbed = Callable[[RunConfig], SimulationResult]


class Recorder:
    """Keeps every event, and may stop the run at one."""

    def __init__(self, stop_at: Callable[[Event], bool] = lambda event: False) -> None:
        self.events: list[Event] = []
        self.stop_at = stop_at

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if self.stop_at(event):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def adapters(result: SimulationResult) -> tuple[str, str]:
    """Digests of the last and of the released adapter."""
    return result.federated.outcome.last.adapter.digest, result.federated.outcome.released.digest


def test_the_result_folder_holds_everything_and_the_model_has_learnt(
    settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Config, plan, metrics, table, curves, card and adapter are there; the ranking beats chance."""
    write_rows(tmp_path / "rows.jsonl", 96, 1)  # enough to learn from
    result = run_simulation(
        settings(
            rounds={"rounds": 3},
            local={"epochs": 2},
            release={"metric": "auroc", "direction": "max"},
            bounds={"local_only": True, "centralised": True},
        )
    )
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "config.yaml", "plan.json", "environment.json", "metrics.jsonl", "summary.json", "sites.csv",
        "curves.png", "README.md", "adapter", "adapter_last", "tensorboard", "samples.md",
    }  # fmt: skip
    assert result.federated.test["test"].values["auroc"] > 0.9  # 0.5 before training
    assert set(result.bounds) == {
        "centralised",
        "local/ward_0",
        "local/ward_1",
        "local/ward_2",
        "local/ward_3",
    }
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["arms"]["federated"]["released_adapter"] == adapters(result)[1]
    assert summary["arms"]["federated"]["test"]["test"]["support"]["accuracy"] == 40
    assert list(summary["comparison"]) == [
        "before training", "federated", "local-only, mean of 4 sites", "centralised",
    ]  # fmt: skip
    assert summary["comparison"]["before training"]["auroc"] == result.before["test"].values["auroc"] < 0.9
    assert set(result.before) == {"test", *(f"test/ward_{number}" for number in range(4))}
    local = [bound.test["test"].values["auroc"] for name, bound in result.bounds.items() if "/" in name]
    assert summary["comparison"]["local-only, mean of 4 sites"]["auroc"] == pytest.approx(sum(local) / 4)
    with (result.folder / "sites.csv").open() as file:
        (first, *_) = list(csv.DictReader(file))
    own = result.before["test/ward_0"].values["accuracy"]
    assert float(first["before_training.own.accuracy"]) == pytest.approx(own, rel=1e-5)
    assert not [path for path in result.folder.rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize(
    ("mode", "participation", "encoding"),
    [
        ("off", 0.75, {}),
        ("off", 0.75, {"bits": 32}),
        ("off", 1.0, {"bits": 20, "largest": 0.01, "most_weight": 50}),
        ("real", 1.0, {}),
    ],
    ids=["16 bits", "32 bits", "clipped at 20 bits", "secure"],
)
def test_the_slow_twin_gives_the_identical_adapter(
    settings: Callable[..., RunConfig], mode: str, participation: float, encoding: dict[str, Any]
) -> None:
    """Plain PyTorch without Flower, round loop, ring or strategy ends with the same bits, dropout and all.

    The rounding is random, and the same; so is the clipping where the bound of a coordinate is too small.
    """
    from wardround.simulations.twin import run_twin
    from wardround.training.adapters import ADAPTERS
    from wardround.training.tasks import TASKS
    from wardround.training.workbench import open_workbench

    config = settings(
        rounds={"rounds": 3, "participation": participation},
        local={"schedule": {"shape": "cosine", "warmup": 0.1}},
        secure={"mode": mode},
        encoding=encoding,
    )
    recorder = Recorder()
    result = run_simulation(config, sinks=(recorder,))
    clipped = [e.local.get("clipped", 0) for e in recorder.events if isinstance(e, SiteReplied)]
    assert (sum(clipped) > 0) is ("largest" in encoding)
    method = ADAPTERS.get("lora")
    bench = open_workbench(
        config.model, TASKS.get(config.task.name), result.plan.data, method,
        method.Options.model_validate(config.adapter.options), config.machine, seed=config.seed,
    )  # fmt: skip
    twin = run_twin(Arm("federated", result.plan, result.federated.arm.sites), bench, bench.initial_adapter())
    assert twin.digest == adapters(result)[0]
    assert twin.digest != result.plan.adapter.initial_digest


def test_equal_seeds_give_equal_adapters_and_other_seeds_others(
    settings: Callable[..., RunConfig], undisturbed: Undisturbed
) -> None:
    """Same configuration twice: same digest. Another seed: another one."""
    first = undisturbed(settings())
    assert adapters(run_simulation(settings("b"))) == adapters(first)
    assert adapters(run_simulation(settings("c", seed=4))) != adapters(first)


@pytest.mark.parametrize(
    ("killed_after", "state", "mode"),
    [*((after, state, "off") for after in (1, 2) for state in ("reset", "keep")), (2, "keep", "real")],
)
def test_an_interrupted_run_resumes_to_the_identical_adapter(
    settings: Callable[..., RunConfig], undisturbed: Undisturbed, state: str, killed_after: int, mode: str
) -> None:
    """Stopped while a site trains in the round after `killed_after`, resumed: the undisturbed bits.

    A resumed simulation has new identities, and other masks: the sums are the same.
    """
    work = {"optimiser_state": state}
    whole = undisturbed(settings(local=work))

    def third_site(event: Event) -> bool:
        return isinstance(event, SiteReplied) and event.round == killed_after + 1 and event.site == "ward_2"

    config = settings("cut", local=work, secure={"mode": mode})
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Recorder(third_site),))
    recorder = Recorder()
    resumed = run_simulation(config.model_copy(update={"resume": config.output}), sinks=(recorder,))
    assert adapters(resumed) == adapters(whole)
    assert [e.round for e in recorder.events if isinstance(e, RoundFolded)] == list(
        range(killed_after + 1, 4)
    )
    folded = [
        record["round"]
        for record in map(json.loads, (resumed.folder / "metrics.jsonl").read_text().splitlines())
        if record["event"] == "RoundFolded"
    ]
    assert folded == [1, 2, 3]


def test_a_site_whose_loss_is_not_finite_is_named_and_the_others_go_on(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ward's loss becomes NaN in every round: it is missing by name, and the adapter stays finite."""
    from wardround.client import work as handler
    from wardround.core.errors import TrainingError

    train = handler.train_locally

    def poisoned(bench: Any, job: Any) -> Any:
        if job.site == "ward_1":
            raise TrainingError("non_finite_loss", "the loss of site 'ward_1' is not finite at step 1")
        return train(bench, job)

    monkeypatch.setattr(handler, "train_locally", poisoned)
    recorder = Recorder()
    result = run_simulation(settings(), sinks=(recorder,))
    missing = {event.missing for event in recorder.events if isinstance(event, RoundFolded)}
    assert missing == {("ward_1",)}
    codes = {e.code for e in recorder.events if isinstance(e, SiteReplied) and e.site == "ward_1" and e.code}
    assert codes == {"non_finite_loss"}
    assert np.isfinite(result.federated.outcome.last.adapter.vector).all()


BAD: dict[str, tuple[dict[str, Any], type[WardroundError], str]] = {
    "wrong column": (
        {"data": {"columns": {"text": "notes", "label": "kind"}}}, DataError, "did you mean 'note'",
    ),
    "missing file": ({"data": {"source": {"path": "nowhere.jsonl"}}}, DataError, "nowhere.jsonl"),
    "foreign label": ({"data": {"labels": ["calm", "other"]}}, DataError, "'acute' in"),
    "rank 0": ({"adapter": {"options": {"r": 0, "alpha": 8}}}, ConfigError, "r"),
    "targets that match nothing": (
        {"adapter": {"options": {"r": 4, "alpha": 8, "targets": ["qeury"]}}}, ModelError, "query",
    ),
    "unknown strategy": ({"strategy": {"name": "fedavgg"}}, ConfigError, "did you mean 'fedavg'"),
    "unknown option": (
        {"strategy": {"name": "fedprox", "options": {"muu": 1}}}, ConfigError, "did you mean 'mu'",
    ),
    "unknown metric": (
        {"release": {"metric": "acuracy", "direction": "max"}}, ConfigError, "did you mean 'accuracy'",
    ),
    "worst direction": ({"release": {"metric": "accuracy", "direction": "min"}}, ConfigError, "worst"),
    "no model": ({"model": {"path": "./nowhere"}}, ModelError, "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_settings_are_a_clear_error_and_leave_no_folder(
    settings: Callable[..., RunConfig], kind: str
) -> None:
    """Each names what is wrong; nothing is written."""
    sections, error, text = BAD[kind]
    config = settings(**sections)
    with pytest.raises(error, match=text):
        run_simulation(config)
    assert not Path(config.output).exists()


def test_an_unknown_key_is_named_with_the_nearest_known_one(settings: Callable[..., RunConfig]) -> None:
    """`learning_rte` in local: the message proposes learning_rate."""
    values = settings().model_dump(mode="json")
    values["local"]["learning_rte"] = 1.0
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        RunConfig.parse(values)


def test_a_full_output_folder_is_refused(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Somebody's files are never mixed with a run's."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        run_simulation(settings())


def test_the_saved_configuration_runs_again_to_the_same_adapter(
    settings: Callable[..., RunConfig], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """config.yaml in the folder is the whole configuration."""
    first = undisturbed(settings())
    saved = yaml.safe_load((first.folder / "config.yaml").read_text())
    again = run_simulation(RunConfig.parse({**saved, "output": str(tmp_path / "again")}))
    assert adapters(again) == adapters(first)


def test_a_run_starts_from_a_saved_adapter(
    settings: Callable[..., RunConfig], undisturbed: Undisturbed
) -> None:
    """The second run's initial adapter is the first one's released one."""
    first = undisturbed(settings())
    start = {"options": {"r": 4, "alpha": 8, "dropout": 0.1}, "start_from": str(first.folder / "adapter")}
    second = run_simulation(settings("second", adapter=start, rounds={"rounds": 1}))
    assert second.plan.adapter.initial_digest == adapters(first)[1]


@pytest.mark.parametrize("shown", [False, True])
def test_samples_show_texts_only_where_the_configuration_allows(
    settings: Callable[..., RunConfig], tmp_path: Path, shown: bool
) -> None:
    """The row's text and label stand beside the answer in samples.md then, and never in the model card."""
    folder = run_simulation(settings(rounds={"rounds": 1}, evaluation={"sample_texts": shown})).folder
    first = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    page, card = (folder / "samples.md").read_text(), (folder / "README.md").read_text()
    assert (f"    prompt: {first['note']}\n    reference: {first['kind']}\n    label: " in page) is shown
    assert ("do not publish" in page) is shown
    assert page.count("    label: ") == 3
    for text in (page, card):
        assert first["id"] not in text.split()
        assert "id: " not in text.replace("provided: ", "")
    assert first["note"] not in card
    assert str(tmp_path) not in card
    assert "Trained on: `rows.jsonl`." in card


def test_the_closing_table_counts_rows_and_names_other_units(
    settings: Callable[..., RunConfig], tiny_llama: Path
) -> None:
    """Forty rows of test are forty in its title, for a language model as well; bytes are called bytes."""
    from rich.console import Console

    from wardround.simulations.report import print_result

    def told(config: RunConfig) -> str:
        console = Console(record=True, width=200, file=io.StringIO())
        print_result(run_simulation(config), console)
        return console.export_text()

    classifier = told(settings("classifier", rounds={"rounds": 1}))
    assert "Everybody's test rows (40 rows)" in classifier
    assert "before training" in classifier
    assert "support" not in classifier
    language = told(
        settings(
            "language", rounds={"rounds": 1}, model={"path": str(tiny_llama)},
            task={"name": "causal_lm", "options": {"format": "text"}},
            adapter={"options": {"r": 2, "alpha": 2}},
            data={"columns": {"text": "note"}, "labels": []},
            local={"epochs": None, "steps": 1},
            release={"metric": "bits_per_byte", "direction": "min"},
        )
    )  # fmt: skip
    assert "Everybody's test rows (40 rows)" in language
    assert re.search(r"support.* [\d,]+ tokens.* [\d,]+ bytes", language)
