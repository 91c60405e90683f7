"""A site's rows as the model reads them: what it trains on, and what it holds back."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose, seed_for
from wardround.training.examples import Example, parts_of
from wardround.training.private.sampling import bounded_rows
from wardround.training.tasks.contract import Encoded

if TYPE_CHECKING:
    from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class SiteRows:
    """Encoded rows of one site.

    Attributes:
        training: What it trains on.
        validation: What it holds back.
        units: Of each training row, whose it is; empty where rows of several units were packed into one.
    """

    training: list[Encoded]
    validation: list[Encoded]
    units: list[str] = field(default_factory=list)
    most_of_one: tuple[int, int] = (1, 1)
    """The most rows that one unit has among those for training, and among those held back."""
    everybody: tuple[str, ...] = field(default=(), repr=False)
    """Units of all of them, sorted, those that are held back included."""
    held_back: tuple[str, ...] = field(default=(), repr=False)
    """Units of those that are held back, sorted: nobody else's rows are among them."""
    contents: dict[str, str] = field(default_factory=dict, repr=False)
    """By unit a digest of what all of its rows say: `contents_of`. It stays at the site."""
    digest: str = ""
    """SHA-256 of all usable rows in their order, as they were read. It stays at the site."""


def bounded_site(plan: TrainingPlan, name: str, rows: SiteRows) -> SiteRows:
    """The rows with no more of a patient than the plan's privacy of single rows counts on."""
    privacy = plan.privacy
    if privacy is None or privacy.unit != "example" or privacy.most_examples is None:
        return rows
    seed = seed_for(plan.seed, Purpose.BATCH, site=name)
    kept = bounded_rows(rows.units, privacy.most_examples, seed=seed)
    return replace(
        rows, training=[rows.training[row] for row in kept], units=[rows.units[row] for row in kept]
    )


def encode_site(
    plan: TrainingPlan, bench: Workbench, name: str, examples: Sequence[Example], tell: Callable[[str], None]
) -> SiteRows:
    """Carve the validation part by unit, then encode both parts.

    Args:
        plan: What is trained.
        bench: Its tokenizer reads the rows.
        name: Of the site: which units it holds back follows from it.
        examples: All usable rows of the site.
        tell: Takes a sentence for each part of which truncation cut something.
    """
    parts = parts_of(plan, name, examples)
    training, validation = ([examples[index] for index in part] for part in parts)
    encoded = encode_rows(plan, bench, training, name, tell)
    return SiteRows(
        encoded,
        encode_rows(plan, bench, validation, name, tell),
        [] if plan.data.packing else [example.unit for example in training],
        (_most_of_one(training), _most_of_one(validation)),
        _units(examples),
        _units(validation),
        contents_of(examples),
        _digest(examples),
    )


def contents_of(examples: Iterable[Example]) -> dict[str, str]:
    """By unit a digest of what its rows say, whatever their order, their ids and the unit's name; in hex.

    Units that say the same are left out: standard texts tell nobody apart.
    """
    sums: dict[str, int] = {}
    for example in examples:
        row = hashlib.sha256(repr(sorted(example.roles.items())).encode()).digest()
        sums[example.unit] = (sums.get(example.unit, 0) + int.from_bytes(row)) % 2**256
    shared = Counter(sums.values())
    return {unit: f"{value:064x}" for unit, value in sums.items() if shared[value] == 1}


def _units(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(sorted({example.unit for example in examples}))


def _digest(examples: Sequence[Example]) -> str:
    state = hashlib.sha256()
    for example in examples:
        state.update(repr((example.id, example.unit, example.label, sorted(example.roles.items()))).encode())
    return state.hexdigest()


def _most_of_one(examples: Sequence[Example]) -> int:
    return max(Counter(example.unit for example in examples).values(), default=1)


def encode_rows(
    plan: TrainingPlan, bench: Workbench, examples: Sequence[Example], where: str, tell: Callable[[str], None]
) -> list[Encoded]:
    """Encode rows; what truncation cut is told, never silent."""
    encoded = bench.task.encode(examples, bench.tokenizer, plan.data, plan.task)
    tokens = sum(row.cut for row in encoded)
    if tokens:
        # Packed rows share a sequence, which then does not say how many of them were cut.
        cut = "some" if plan.data.packing else sum(1 for row in encoded if row.cut)
        tell(
            f"{where}: {cut} of {len(examples)} rows were longer than {plan.data.max_length} tokens; "
            f"{tokens} tokens were cut"
        )
    return encoded
