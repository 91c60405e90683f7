"""What a configuration is refused for before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from wardround.core.errors import ConfigError
from wardround.runtime.locations import locate
from wardround.simulations.config import RunConfig
from wardround.simulations.new_folder import require_new
from wardround.simulations.partitions import PARTITIONS
from wardround.simulations.virtual.sites import check_settings as check_settings_of_realism
from wardround.training.adapters import ADAPTERS
from wardround.training.settings import check_settings, choose_strategy, resolve
from wardround.training.source_spec import source_of
from wardround.training.tasks import TASKS


def check_first(config: RunConfig) -> None:
    """Refuse a configuration by its names and places alone; `prepare` checks the rest.

    What a person names as `module:attribute` is imported later, except for a strategy.

    Raises:
        ConfigError: The folder can hold no new run, or none to resume; an unknown name; an unknown option
            of the strategy; a setting that the optimiser does not read; an availability trace that is none.
        DataError: A source of rows is not there, or has an unknown ending.
        ModelError: The base model is not there.
    """
    if not config.resume:
        require_new(Path(config.output))
    elif not Path(config.resume).is_dir():
        raise ConfigError(f"there is no run to resume in {config.resume}", remedy="correct the folder")
    TASKS.require(config.task.name)
    ADAPTERS.require(config.adapter.method)
    if not config.data.sites:
        PARTITIONS.require(config.partition.kind)
    check_settings_of_realism(config.simulation.realism)
    choose_strategy(config.strategy, allow_dotted=True)
    check_settings(config.local)
    data = config.data
    for source in (data.source, *data.sites.values(), data.test, *data.site_tests.values()):
        if source is not None and source.kind is None:
            source_of(locate(source.path))
    resolve(config.model)
