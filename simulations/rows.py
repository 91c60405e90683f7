"""From configured sources to the rows of every simulated site; nothing here loads a model."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wardround.core.checked import parse_options
from wardround.core.errors import DataError
from wardround.core.plan import DataContract, TaskSpec
from wardround.core.seeds import Purpose, generator
from wardround.simulations.config import RunConfig
from wardround.simulations.partitions import PARTITIONS
from wardround.training.examples import Example, ExampleSet, collect_labels, read_examples
from wardround.training.plan_config import DataConfig
from wardround.training.plan_making import written_contract
from wardround.training.source_spec import SourceSpec
from wardround.training.tasks import Task

LONGEST_NAME = 100
SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """Rows of the simulation.

    Attributes:
        contract: The data contract, its label list fixed (digests still missing).
        sites: Site → its training rows, sorted by name.
        test: Rows that score everybody.
        site_tests: Site → the test rows of its own.
        notices: What a person should know: quarantined rows, sites left out.
    """

    contract: DataContract
    sites: dict[str, list[Example]]
    test: list[Example]
    site_tests: dict[str, list[Example]]
    notices: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 over every row that is trained or tested on, its site and their order.

        It tells two data sets apart and gives nothing of their rows away.
        """
        state = hashlib.sha256()
        parts = {"sites": self.sites, "test": {"": self.test}, "site_tests": self.site_tests}
        for part, tables in parts.items():
            for name, examples in sorted(tables.items()):
                state.update(f"{part} {json.dumps(name)} {len(examples)}\n".encode())
                for row in examples:
                    content = [row.id, row.unit, row.site, row.label, row.roles]
                    state.update(json.dumps(content, sort_keys=True, default=repr).encode() + b"\n")
        return state.hexdigest()


def gather(config: RunConfig, task: Task, spec: TaskSpec, *, allow_dotted: bool = True) -> Rows:
    """Read, map, check and partition every row.

    Raises:
        DataError: Wrong mapping, a label outside the list, no rows at all.
        ConfigError: Unknown partition or option.
    """
    data = config.data
    if data.source is None and not data.sites:
        raise DataError("no training rows are configured", expected="data.source, or data.sites")
    roles = task.required_roles(spec)
    contract = contract_of(data, roles)
    notices: list[str] = []

    def read(
        source: SourceSpec, where: str, site_column: str | None = None, *, units: bool = True
    ) -> list[Example]:
        rows = read_examples(
            source,
            contract,
            roles,
            site_column=site_column,
            fault=lambda example: task.fault(example, spec),
            units=units,
            allow_dotted=allow_dotted,
        )
        if contract.id_column is not None:
            notices.extend(repeated_ids(rows.examples, where))
        return _told(rows, where, notices)

    if data.sites:
        sites = {name: read(source, f"site {name}") for name, source in sorted(data.sites.items())}
    elif data.source is not None:
        rows = read(data.source, "the training source", data.site_column)
        examples = _limited(rows, data.limit, config.seed)
        sites = _partitioned(config, examples, allow_dotted=allow_dotted)
        if contract.unit_column is not None:
            notices.extend(scattered_units(sites))
    _check_names(sites)
    empty = [name for name, examples in sites.items() if not examples]
    sites = {name: examples for name, examples in sorted(sites.items()) if examples}
    if empty:
        notices.append(f"left out, no usable rows: {', '.join(empty)}")
    if not sites:
        raise DataError("no site has a usable row", remedy="run `wardround data check` on the source")
    test, site_tests = _tests(data, read, sites)
    return Rows(contract, sites, test, site_tests, notices)


def _check_names(sites: Iterable[str]) -> None:
    """A site's name becomes a folder's and part of messages: short, printable, no path."""
    wrong = [
        name
        for name in sites
        if not name.isprintable()
        or len(name) > LONGEST_NAME
        or name.startswith(".")
        or name != name.strip()
        or set(name) & set("/\\:\0")
    ]
    if wrong:
        raise DataError(
            "some site names cannot name a folder",
            found=f"{len(wrong)}, the first has {len(wrong[0])} characters",
            expected=f"printable text of at most {LONGEST_NAME} characters, no / \\ : and no leading dot",
            remedy="rename these sites in the data, or map another data.site_column",
        )
    spellings: dict[str, list[str]] = {}
    for name in sorted(sites):
        spellings.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    alike = [names for names in spellings.values() if len(names) > 1]
    if alike:
        raise DataError(
            "some site names differ by case alone, and would share a folder where the disk knows no case",
            found="; ".join(" and ".join(map(repr, names)) for names in alike[:SHOWN])
            + ("; …" if len(alike) > SHOWN else ""),
            expected="names that also differ in lower case",
            remedy="rename them, or give rows of one site one spelling",
        )


def contract_of(data: DataConfig, roles: dict[str, bool]) -> DataContract:
    """The data contract as far as rows decide it; `labels: auto` is resolved here, once, for the plan."""
    contract = written_contract(data)
    if data.labels == "auto" and "label" in roles:
        sources = list(data.sites.values()) or ([data.source] if data.source else [])
        labels = collect_labels(sources, contract, allow_dotted=True)
        contract = contract.model_copy(update={"labels": labels})
    return contract


def _partitioned(
    config: RunConfig, examples: Sequence[Example], *, allow_dotted: bool
) -> dict[str, list[Example]]:
    partition = PARTITIONS.get(config.partition.kind, allow_dotted=allow_dotted)
    options = parse_options(
        partition.Options, config.partition.options, f"options of partition {config.partition.kind!r}"
    )
    parts = partition.split(examples, options, seed=config.seed)
    return {name: [examples[index] for index in indices] for name, indices in parts.items()}


def _tests(
    data: DataConfig, read: Callable[..., list[Example]], sites: dict[str, list[Example]]
) -> tuple[list[Example], dict[str, list[Example]]]:
    test = [] if data.test is None else read(data.test, "the test source", data.site_column, units=False)
    site_tests = {
        name: read(source, f"the test source of {name}", units=False)
        for name, source in sorted(data.site_tests.items())
    }
    if not site_tests:
        cut = {name: [example for example in test if example.site == name] for name in sites}
        site_tests = {name: examples for name, examples in cut.items() if examples}
    unknown = sorted(set(site_tests) - set(sites))
    if unknown:
        raise DataError(
            "test rows are configured for sites that do not exist",
            found=", ".join(unknown),
            expected=", ".join(sites),
        )
    return test, site_tests


def _told(rows: ExampleSet, where: str, notices: list[str]) -> list[Example]:
    counts = rows.quarantine_counts()
    if counts:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(counts.items()))
        notices.append(f"{where}: {sum(counts.values())} of {rows.rows_read} rows quarantined ({reasons})")
    return list(rows.examples)


def repeated_ids(examples: Sequence[Example], where: str) -> list[str]:
    """A notice where rows share the id that should name them; they are used all the same."""
    again = len(examples) - len({example.id for example in examples})
    return [f"{where}: {again} of {len(examples)} rows repeat the id of another row"] if again else []


def scattered_units(sites: Mapping[str, Sequence[Example]]) -> list[str]:
    """A notice where rows of one unit (a patient) lie at several sites: nothing then keeps them together."""
    places: dict[str, set[str]] = {}
    for site, examples in sites.items():
        for example in examples:
            places.setdefault(example.unit, set()).add(site)
    several = sum(len(found) > 1 for found in places.values())
    if not several:
        return []
    split = f"{several} of {len(places)} units have rows at more than one site"
    return [f"{split}: what a site holds back for validation, another may train on"]


def _limited(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` rows, whole units, chosen by the seed and not by the order of the source.

    The last unit goes where the limit would cut it; a first one that is larger than the limit is cut.
    """
    if limit is None or len(examples) <= limit:
        return examples
    units = sorted({example.unit for example in examples})
    generator(seed, Purpose.SAMPLES).shuffle(units)
    rank = {unit: position for position, unit in enumerate(units)}
    drawn = sorted(range(len(examples)), key=lambda index: (rank[examples[index].unit], index))
    chosen, beyond = drawn[:limit], examples[drawn[limit]].unit
    whole = [index for index in chosen if examples[index].unit != beyond]
    return [examples[index] for index in sorted(whole or chosen)]
