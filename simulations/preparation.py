"""What every arm of a simulated run stands on: rows, base model, plan, initial adapter, encoded sites.

rows → base model → plan and initial adapter → encode
"""

from __future__ import annotations

from dataclasses import dataclass

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.runtime.events import EventStream, Notice
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.arms import Arm
from wardround.simulations.config import RunConfig
from wardround.simulations.consortium import require_simulated
from wardround.simulations.partitions import PARTITIONS
from wardround.simulations.rows import Rows, gather
from wardround.simulations.scoring import TestRows
from wardround.training.column_mapping import LABEL
from wardround.training.examples import split_validation
from wardround.training.plan_config import SecureConfig
from wardround.training.plan_making import ExpectedSites, choices_of, plan_of
from wardround.training.site_rows import encode_rows, encode_site
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class Preparation:
    """A configured run before anything is trained.

    Attributes:
        config: Checked configuration, a simulated aggregator's key filled in.
        rows: Rows of every site, and the test rows.
        bench: Base model with the adapter on it; all sites share it.
        plan: What is trained.
        initial: The adapter that every arm starts from.
    """

    config: RunConfig
    rows: Rows
    bench: Workbench
    plan: TrainingPlan
    initial: Adapter


def prepare(config: RunConfig, rows: Rows | None = None) -> Preparation:
    """Check the whole configuration, read the rows, load the base model, make plan and initial adapter.

    Args:
        config: Checked configuration.
        rows: Instead of those that the configuration names.

    Raises:
        WardroundError: What is wrong with configuration, data or model, in this order.
    """
    config = config.model_copy(update={"secure": with_key(config.secure, config.seed)})
    choices = choices_of(config, allow_dotted=True)
    if rows is None and not config.data.sites:
        partition = PARTITIONS.get(config.partition.kind, allow_dotted=True)
        kind = config.partition.kind
        parse_options(partition.Options, config.partition.options, f"options of partition {kind!r}")
    labelled = LABEL in choices.task.required_roles(choices.spec)
    if config.privacy is not None and config.data.labels == "auto" and labelled:
        raise ConfigError(
            "the label list would be learnt from private rows", found="data.labels=auto",
            expected="a list that is written down", remedy="set data.labels to the ordered list of labels",
        )  # fmt: skip
    rows = rows or gather(config, choices.task, choices.spec)
    bench, plan, initial = plan_of(
        config, choices, rows.contract, expected_of(config, rows), allow_dotted=True
    )
    return Preparation(config, rows, bench, plan, initial)


def with_key(secure: SecureConfig, seed: int) -> SecureConfig:
    """The rules of the sums, under `trusted` with the simulated aggregator's key in plan and policy.

    Where nobody wrote one: a policy that allows `trusted` pins that key, as the sites' own people would.

    Raises:
        ConfigError: The configuration names a key that the simulation cannot open for.
    """
    if secure.mode != "trusted":
        return secure
    aggregator = simulated_aggregator(seed)
    key = aggregator.public.hex()
    require_simulated(secure.aggregator or key, aggregator)
    pinned = secure.policy.model_copy(update={"aggregator": secure.policy.aggregator or key})
    return secure.model_copy(update={"aggregator": key, "policy": pinned})


def expected_of(config: RunConfig, rows: Rows) -> ExpectedSites:
    """What the plan's bounds need to know of the sites, counted from their rows."""
    units: dict[str, int] = {}
    rules = config.privacy
    if rules is not None and rules.trains_privately:
        for name, examples in rows.sites.items():
            training, _ = split_validation(
                examples, config.data.validation_fraction, config.seed, name, apart=True,
                named=bool(config.data.unit_column or config.data.id_column),
            )  # fmt: skip
            if not training:
                raise ConfigError(
                    f"site {name} would hold back all that it has",
                    found=f"{len(examples)} rows, data.validation_fraction={config.data.validation_fraction}",
                    expected="a patient to train on: each one's own hash decides under privacy",
                    remedy="set data.validation_fraction=0, or another seed",
                )
            own = training if rules.unit == "example" else {examples[index].unit for index in training}
            units[name] = len(own)
    most = max((len(examples) for examples in rows.sites.values()), default=1)
    return ExpectedSites(len(rows.sites), most, units)


def encode_all(prepared: Preparation, events: EventStream) -> tuple[Arm, TestRows]:
    """The federation and the test rows, as the model reads them; what was cut is told as notices."""
    plan, bench, rows = prepared.plan, prepared.bench, prepared.rows

    def tell(text: str) -> None:
        events.emit(Notice(FEDERATED, "info", text))

    sites = {name: encode_site(plan, bench, name, examples, tell) for name, examples in rows.sites.items()}
    test = TestRows(
        encode_rows(plan, bench, rows.test, "test", tell),
        {
            name: encode_rows(plan, bench, found, f"test/{name}", tell)
            for name, found in rows.site_tests.items()
        },
    )
    return Arm(FEDERATED, plan, sites), test
