"""`wardround plan new`: a consortium's plan from Hydra's configuration, made without a row of anybody's.

What a simulation counts in the rows is said instead: the labels, how many sites, how much the largest has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pydantic import Field
from rich.console import Console

from wardround.core.checked import Frozen, parse_options
from wardround.core.enrolment import DAY_S, LONGEST_OFFER_S, EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Adapter
from wardround.runtime.files import private_folder
from wardround.runtime.plan_folder import write_plan_folder
from wardround.simulations.config import RunConfig
from wardround.simulations.hydra_main import plain_values, run_hydra
from wardround.training.adapters import ADAPTERS
from wardround.training.column_mapping import LABEL
from wardround.training.plan_check import option_faults, plan_faults, refuse_simulated
from wardround.training.plan_config import PlanConfig, SecureConfig
from wardround.training.plan_making import ExpectedSites, choices_of, plan_of, written_contract
from wardround.training.plan_summary import summary_of, summary_text
from wardround.training.settings import check_settings, choose_strategy, resolve
from wardround.training.tasks import TASKS

SECTION: Final = "plan"


class PlanSettings(Frozen):
    """What nobody counts for a consortium's plan, and when its first round begins."""

    sites: int = Field(ge=1)
    """So many are expected to take part."""
    most_rows: int | None = Field(default=None, ge=1)
    """Usable rows of the largest site, those among them that it holds back for validation."""
    units: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, min_length=1)
    """Units that sites train on, the smallest and the largest site's at least; read under privacy alone."""
    least_sites: int | None = Field(default=None, ge=1)
    """So many have to accept the plan before round 1; None: all that are expected."""
    offer_expires_s: float = Field(default=7 * DAY_S, gt=0, le=LONGEST_OFFER_S)
    grace_s: float = Field(default=60.0, ge=0, le=LONGEST_OFFER_S)

    @property
    def enrolment(self) -> EnrolmentRules:
        """What is signed of it."""
        least = self.sites if self.least_sites is None else self.least_sites
        return EnrolmentRules(least_sites=least, offer_expires_s=self.offer_expires_s, grace_s=self.grace_s)


def new_plan(arguments: Sequence[str]) -> None:
    """Run `wardround plan new FOLDER` with Hydra's arguments after the folder.

    Raises:
        ConfigError: No folder is named, or Hydra cannot compose the configuration.
        WardroundError: As `make_document` and `write_plan_folder`.
    """
    named = bool(arguments) and arguments[0][:1] != "-" and "=" not in arguments[0]
    folder = Path(arguments[0]) if named else None

    def work(composed: DictConfig) -> None:
        if folder is None:
            raise ConfigError(
                "no folder is named for the plan",
                expected="wardround plan new FOLDER plan.sites=5 …",
                remedy="name it before the settings",
            )
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise ConfigError("a plan is made one at a time", found="-m", remedy="leave -m out")
        _require_empty(folder)
        values = plain_values(composed)
        settings = plan_settings(values.pop(SECTION, {}))
        document, initial = make_document(RunConfig.parse(values), settings)
        private_folder(folder.parent)
        write_plan_folder(folder, document, initial)
        console = Console()
        record = summary_of(document, settings.sites, settings.units or ())
        console.print(summary_text(record), soft_wrap=True, markup=False, highlight=False)
        console.print(f"Wrote {folder}. Next: wardround plan sign {folder} --consortium OPERATOR_FOLDER",
                      soft_wrap=True, markup=False)  # fmt: skip

    known = {*RunConfig.model_fields, SECTION}
    taken = arguments[1:] if named else arguments
    run_hydra(taken, work, program="wardround plan new FOLDER", config="plan", settings=known)


def plan_settings(values: Any) -> PlanSettings:
    """The section `plan` of a configuration.

    Raises:
        ConfigError: An unknown key, a wrong value, or no number of sites.
    """
    if not isinstance(values, dict):
        raise ConfigError("the section plan is not a mapping", found=type(values).__name__)
    settings = parse_options(PlanSettings, values, "settings of the plan (section plan)")
    if not isinstance(settings, PlanSettings):
        raise InternalError("the plan's settings are of another class", found=type(settings).__name__)
    return settings


def make_document(config: PlanConfig, settings: PlanSettings) -> tuple[SignedPlan, Adapter]:
    """The document that is to be signed, and the initial adapter that its plan names.

    No row is read: of `data` only what goes into the data contract counts.

    Raises:
        ConfigError: Labels that would be learnt from rows, a number that nobody said, code given by its path,
            an aggregator that is none, or what the same settings are refused for in a simulation.
        PolicyError: Sites as `secure.policy` describes them would refuse it.
        ModelError: The base model is not there or not fit.
    """
    _check_first(config)
    config = config.model_copy(update={"secure": pinned(config.secure, config.seed)})
    expected = _expected(config, settings)
    choices = choices_of(config, allow_dotted=False)
    if config.data.labels == "auto" and LABEL in choices.task.required_roles(choices.spec):
        raise ConfigError(
            "the label list would be learnt from rows, and a consortium's plan reads none",
            found="data.labels=auto", expected="a list that is written down",
            remedy="set data.labels to the ordered list of labels",
        )  # fmt: skip
    _, plan, initial = plan_of(config, choices, written_contract(config.data), expected, allow_dotted=False)
    document = SignedPlan(plan=plan, enrolment=settings.enrolment)
    for fault in (*plan_faults(document, [settings.sites]), *option_faults(plan)):
        raise fault
    return document, initial


def pinned(secure: SecureConfig, seed: int) -> SecureConfig:
    """The rules of the sums; under `trusted` the policy of the expected sites pins the aggregator's key.

    Raises:
        ConfigError: No key is named, or that of a simulation.
    """
    if secure.mode != "trusted":
        return secure
    if secure.aggregator is None:
        raise ConfigError(
            "secure.mode=trusted needs the public key of a real aggregator", found="secure.aggregator=null",
            expected="its X25519 key, 64 digits in hex",
            remedy="ask the server's people: wardround server aggregator-key shows it",
        )  # fmt: skip
    refuse_simulated(secure.aggregator, seed)
    policy = secure.policy.model_copy(update={"aggregator": secure.policy.aggregator or secure.aggregator})
    return secure.model_copy(update={"policy": policy})


def _check_first(config: PlanConfig) -> None:
    """What is refused before torch is imported, which takes seconds."""
    TASKS.require(config.task.name)
    ADAPTERS.require(config.adapter.method)
    choose_strategy(config.strategy, allow_dotted=False)
    check_settings(config.local)
    resolve(config.model)


def _expected(config: PlanConfig, settings: PlanSettings) -> ExpectedSites:
    private = config.privacy is not None and config.privacy.trains_privately
    if private and settings.units is None:
        raise ConfigError(
            "how many units the sites train on has to be said: noise and bounds follow from it",
            found="plan.units=null", expected="those of the smallest and of the largest site",
            remedy="set plan.units, such as plan.units=[60,400]",
        )  # fmt: skip
    if settings.most_rows is None and _needs_rows(config):
        raise ConfigError(
            "how many rows the largest site has must be said: the bounds of a contribution follow from it",
            found="plan.most_rows=null", expected="a number, rather too large than too small",
            remedy="set plan.most_rows, or both of encoding.largest and encoding.most_weight",
        )  # fmt: skip
    units = {f"with {count} units": count for count in settings.units or ()} if private else {}
    return ExpectedSites(settings.sites, settings.most_rows or 1, units)


def _needs_rows(config: PlanConfig) -> bool:
    """Whether `bounds_of` asks for the rows of the largest site."""
    if config.privacy is not None:
        return False
    given, weighting, by_epochs = config.encoding, config.strategy.weighting, config.local.epochs is not None
    weighs = weighting == "examples" or (weighting == "targets" and by_epochs)
    return (given.largest == "auto" and by_epochs) or (given.most_weight == "auto" and weighs)


def _require_empty(folder: Path) -> None:
    """Refuse a folder that is taken before a model is loaded for it."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is there already", expected="no such folder, or an empty one",
            remedy="choose another name, or move it away",
        )  # fmt: skip
