"""A finished run, read from its folder; without torch until its task or its adapter method is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import TrainingPlan
from wardround.simulations.config import RunConfig
from wardround.training.adapters import ADAPTERS, AdapterMethod
from wardround.training.examples import Example, ExampleSet, read_examples
from wardround.training.settings import BaseModelConfig
from wardround.training.source_spec import SourceSpec
from wardround.training.tasks import TASKS, Task

SITES: Final = "sites"
"""Folder of a run whose strategy leaves each site an adapter of its own, in `sites/NAME/adapter`."""


def own_folder(site: str) -> str:
    """Where a site's own adapter lies in the folder of its run."""
    return f"{SITES}/{site}/adapter"


@dataclass(frozen=True)
class FinishedRun:
    """A run's plan and configuration, read from its folder."""

    folder: Path
    plan: TrainingPlan
    config: RunConfig

    @staticmethod
    def open(folder: Path) -> FinishedRun:
        """Read `plan.json` and `config.json`.

        Raises:
            ConfigError: The folder is not that of a run.
        """
        try:
            plan = TrainingPlan.parse((folder / "plan.json").read_bytes())
            config = RunConfig.parse(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{folder} is not the folder of a run",
                found=type(error).__name__,
                expected="plan.json and config.json, whole",
            ) from error
        return FinishedRun(folder, plan, config)

    @property
    def task(self) -> Task:
        """The plan's task."""
        return TASKS.get(self.plan.task.name, allow_dotted=True)

    @property
    def adapter_method(self) -> AdapterMethod:
        """The plan's adapter method."""
        return ADAPTERS.get(self.plan.adapter.method, allow_dotted=True)

    def read(self, source: SourceSpec, *, labelled: bool = True) -> ExampleSet:
        """Rows of a source through the plan's data contract."""
        spec, predict = self.plan.task, not labelled
        return read_examples(
            source,
            self.plan.data,
            self.task.required_roles(spec, predict=predict),
            fault=lambda example: self.task.fault(example, spec, predict=predict),
            predict=predict,
            units=False,
            allow_dotted=True,
        )

    def examples(self, source: SourceSpec, *, labelled: bool = True) -> list[Example]:
        """The usable rows of a source."""
        return list(self.read(source, labelled=labelled).examples)

    def model_config(self, path: str | None = None) -> BaseModelConfig:
        """The run's base model, or the same one where it lies now; other weights are refused.

        Raises:
            ModelError: The path is empty.
        """
        if path is not None and not path.strip():
            raise ModelError("no model is named", found="an empty path", remedy="correct --model")
        place = {} if path is None else {"path": path}
        return self.config.model.model_copy(update={"digest": self.plan.base.digest, **place})


def finished_run(folder: Path, run: Path | None) -> FinishedRun:
    """The run that a model's folder belongs to.

    Args:
        folder: Of a run, of its adapter, or of a merged model.
        run: The run, where the folder lies outside it.

    Raises:
        ConfigError: There is no such folder, or no run that it belongs to.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder {folder}", expected="a run, an adapter folder or a merged model"
        )
    return FinishedRun.open(run or run_of(folder))


def run_of(folder: Path) -> Path:
    """The run that a folder is, or lies in; what is a site's own lies under `sites/NAME`."""
    of_site = [place.parent for place in folder.resolve().parents[:2] if place.name == SITES]
    for candidate in (folder, folder.parent, *of_site):
        if (candidate / "plan.json").exists():
            return candidate
    raise ConfigError(
        f"the run that {folder} belongs to is not beside it",
        remedy="name it: --run RUN (its plan maps the rows and its configuration names the base model)",
    )


def adapter_in(folder: Path) -> Path:
    """The adapter's folder of a run, or of a site of one; any other folder is what it is.

    Raises:
        ConfigError: The run has no adapter for everybody: each site has its own.
    """
    inside, sites = folder / "adapter", folder / SITES
    names = sorted(place.name for place in sites.iterdir()) if sites.is_dir() else []
    if (folder / "plan.json").exists() and not inside.exists() and names:
        raise ConfigError(
            f"{folder} has no adapter for everybody: its strategy leaves each site one of its own",
            found=f"sites {', '.join(names[:5])}", expected=f"the folder of one, such as {sites / names[0]}",
        )  # fmt: skip
    own = (inside / "adapter_config.json").exists()
    return inside if own or (folder / "plan.json").exists() else folder
