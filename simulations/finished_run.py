"""A finished run, read from its folder; without torch until its task or its adapter method is asked for.

The folder is that of a simulation, or of a run of a consortium as it lies at a site, in SITE/runs/RUN: there
the signed plan says what was trained, and the site's own `site.yaml` where base model and rows are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wardround.client.accepted import ACCEPTED, PLAN, RunFolders
from wardround.client.fetching import RESULT
from wardround.client.membership.site_folder import open_site_folder
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import TrainingPlan
from wardround.runtime.result_record import SHARED, SHARED_IS
from wardround.runtime.signed_plan import read_signed_plan
from wardround.simulations.config import RunConfig
from wardround.training.adapters import ADAPTERS, AdapterMethod
from wardround.training.examples import Example, ExampleSet, read_examples
from wardround.training.plan_config import DataConfig, TaskConfig
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
    """A run's plan and configuration, read from its folder.

    `renamed` are columns that a site's rows may have under another name: as the plan calls them → as its rows
    do.
    """

    folder: Path
    plan: TrainingPlan
    config: RunConfig
    renamed: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def open(folder: Path) -> FinishedRun:
        """Read `plan.json` and `config.json`, or at a site the plan that it accepted and its `site.yaml`.

        Raises:
            ConfigError: The folder is not that of a run.
            PeerError: The plan at a site is not signed by its consortium.
            StorageError: Something at a site cannot be read.
        """
        if is_at_site(folder):
            return _at_site(folder)
        _require_whole(folder)
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
        present: list[str] = []
        if self.renamed:
            from wardround.client.data_binding import present_columns  # with torch

            present = present_columns(source)
        return read_examples(
            source,
            self.plan.data,
            self.task.required_roles(spec, predict=predict),
            fault=lambda example: self.task.fault(example, spec, predict=predict),
            predict=predict,
            units=False,
            allow_dotted=True,
            renamed={name: local for name, local in self.renamed.items() if local in present},
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


def is_at_site(folder: Path) -> bool:
    """Whether a folder is that of a run that a site of a consortium accepted."""
    return (folder / PLAN).is_file() and (folder / ACCEPTED).is_file()


def _at_site(folder: Path) -> FinishedRun:
    """A run at a site: SITE/runs/RUN."""
    folder = folder.resolve()
    site, runs = open_site_folder(folder.parent.parent), RunFolders(folder.parent)
    plan = read_signed_plan(runs.required(folder.name), site.consortium_key).plan
    settings = read_site_settings(site.path / FILE)
    # As open_bench looks for it: the place that is known to be the plan's before one that may be.
    places = [place for place in settings.models if place.digest in (None, plan.base.digest)]
    if not places:
        raise ConfigError(
            f"none of this site's base models is {plan.base.name!r}", found="models with other digests",
            expected=f"weights of digest {plan.base.digest}",
            remedy="name its folder under models in site.yaml",
        )  # fmt: skip
    config = RunConfig(
        name=plan.name, seed=plan.seed,
        model=min(places, key=lambda place: place.digest is None).loading(plan.base),
        task=TaskConfig(name=plan.task.name), data=DataConfig(source=settings.source),
        local=plan.local, rounds=plan.rounds, machine=settings.machine,
    )  # fmt: skip
    return FinishedRun(folder, plan, config, settings.columns)


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
    """The run that a folder is, or lies in; what is a site's own lies under `sites/NAME`.

    At a site of a consortium the run's folder holds `result/`, and that the adapter.
    """
    _require_whole(folder)
    for candidate in (folder, *folder.resolve().parents[:2]):
        if is_at_site(candidate):
            return candidate
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
    if is_at_site(folder):
        folder /= RESULT
    inside, sites = folder / "adapter", folder / SITES
    names = sorted(place.name for place in sites.iterdir()) if sites.is_dir() else []
    if (folder / "plan.json").exists() and not inside.exists() and names:
        raise ConfigError(
            f"{folder} has no adapter for everybody: its strategy leaves each site one of its own",
            found=f"sites {', '.join(names[:5])}", expected=f"the folder of one, such as {sites / names[0]}",
        )  # fmt: skip
    own = (inside / "adapter_config.json").exists()
    return inside if own or (folder / "plan.json").exists() else folder


def _require_whole(folder: Path) -> None:
    """Refuse to take for an adapter what the sites of a consortium's run share of theirs.

    Raises:
        ConfigError: It lies there, and no site's own adapter beside it.
    """
    for place in (folder, folder / RESULT):
        if (place / SHARED).exists() and not (place / "adapter").is_dir():
            raise ConfigError(
                f"there is no adapter in {place}", found=f"{SHARED}: {SHARED_IS}",
                expected="SITE/runs/RUN/result/adapter, at each site",
                remedy="at a site that took part: wardround site fetch RUN makes its own",
            )  # fmt: skip
