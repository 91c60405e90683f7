"""What is in a source, before anything is trained: counts, lengths, doubles and faults. No torch."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wardround.core.plan import DataContract
from wardround.training.column_mapping import PROBED_ROWS, check_mapping, check_renaming, renamed_row
from wardround.training.data_report import (
    MOST_LABELS,
    ColumnReport,
    DataReport,
    Fault,
    TokenReport,
    UnitReport,
    spread,
)
from wardround.training.examples import role_value
from wardround.training.source_spec import SourceSpec, code, open_source, plain
from wardround.training.sources.contract import BrokenRow, Row
from wardround.training.template import UnknownCodeError, render, says_something

LINES_NAMED = 20
TEXTS_AT_ONCE = 256

EncodeLengths = Callable[[Sequence[str]], Sequence[int]]
"""Texts → their lengths in tokens, special tokens counted and nothing cut."""


@dataclass(frozen=True)
class Reading:
    """What a task makes of a row: a code for what it cannot read, or its length in tokens if it is known."""

    fault: str | None = None
    tokens: int | None = None


ReadRow = Callable[[Mapping[str, Any]], Reading]
"""Role → value of one row → how the task reads it, nothing cut."""

_KINDS = (
    (bool, "truth"),
    (int, "integer"),
    (float, "number"),
    (bytes, "bytes"),
    (list, "list"),
    (dict, "object"),
)


def check_source(
    spec: SourceSpec,
    data: DataContract | None = None,
    roles: Mapping[str, bool] | None = None,
    encode_lengths: EncodeLengths | None = None,
    read_row: ReadRow | None = None,
    renamed: Mapping[str, str] | None = None,
) -> DataReport:
    """Read a source once, in order, and count. Rows are not kept: only counts, lengths and digests.

    Args:
        spec: Source.
        data: Mapping, template, label list and longest text; None looks at the columns alone.
        roles: Role → whether the task needs it; None takes the mapped ones as needed.
        encode_lengths: Measures texts in tokens.
        read_row: Measures whole rows instead, as a task reads them: a conversation through its chat template,
            a prompt with its completion. It is asked about rows that fill every role that is needed.
        renamed: Column as the contract calls it → the source's own name of it, where the two differ.

    Raises:
        DataError: Nothing readable there, or a mapping that names a column which is not there.
    """
    data = data or DataContract(columns={})
    rows = iter(open_source(spec))
    first = list(itertools.islice(rows, PROBED_ROWS))
    if renamed:
        check_renaming(first, spec, renamed)
        first = [renamed_row(row, renamed) for row in first]
        rows = (renamed_row(row, renamed) for row in rows)
    if roles is None:
        roles = dict.fromkeys(data.columns, True) | ({"text": True} if data.template else {})
    check_mapping(first, spec, data, roles, None)
    tally = _Tally()
    texts = _texts(itertools.chain(first, rows), data, roles, tally, read_row)
    lengths = _token_lengths(texts, encode_lengths)
    return _report(spec, data, tally, lengths if read_row is None else tally.tokens)


@dataclass
class _Tally:
    """Running counts of one pass."""

    rows: int = 0
    readable: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    characters: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    seen_rows: set[bytes] = field(default_factory=set)
    seen_texts: dict[bytes, str | None] = field(default_factory=dict)
    conflicting: set[bytes] = field(default_factory=set)
    seen_ids: set[bytes] = field(default_factory=set)
    units: Counter[bytes] = field(default_factory=Counter)
    duplicate_rows: int = 0
    duplicate_texts: int = 0
    duplicate_ids: int = 0
    fault_rows: Counter[str] = field(default_factory=Counter)
    fault_lines: dict[str, list[int]] = field(default_factory=dict)

    def fault(self, reason: str, number: int) -> None:
        self.fault_rows[reason] += 1
        lines = self.fault_lines.setdefault(reason, [])
        if len(lines) < LINES_NAMED:
            lines.append(number)


def _texts(
    rows: Iterable[Row | BrokenRow],
    data: DataContract,
    roles: Mapping[str, bool],
    tally: _Tally,
    read_row: ReadRow | None,
) -> Iterator[str]:
    """Count every row, and yield the text of those that have one."""
    for row in rows:
        tally.rows += 1
        if isinstance(row, BrokenRow):
            tally.fault(row.reason, row.number)
            continue
        tally.readable += 1
        _count_columns(row, tally)
        if all(plain(value) == "" for value in row.values.values()):
            tally.fault("empty_row", row.number)
            continue
        tally.duplicate_rows += _seen(_digest(row.values), tally.seen_rows)
        label = _count_label(row, data, roles, tally)
        _count_names(row, data, tally)
        text = _text(row, data, roles, tally)
        if text:
            tally.characters.append(len(text))
            _count_text(text, label, tally)
            if read_row is not None:
                _count_reading(row, data, roles, tally, read_row)
            yield text


def _count_reading(
    row: Row, data: DataContract, roles: Mapping[str, bool], tally: _Tally, read_row: ReadRow
) -> None:
    try:
        found = {role: role_value(role, row, data) for role in roles if role != "label"}
    except UnknownCodeError:
        return  # counted with the text
    values = {role: value for role, value in found.items() if value is not None}
    if any(needed and role != "label" and role not in values for role, needed in roles.items()):
        return  # counted as empty
    reading = read_row(values)
    if reading.fault is not None:
        tally.fault(reading.fault, row.number)
    if reading.tokens is not None:
        tally.tokens.append(reading.tokens)


def _count_columns(row: Row, tally: _Tally) -> None:
    for name, value in row.values.items():
        kinds = tally.kinds.setdefault(name, Counter())
        if plain(value) != "":
            tally.filled[name] += 1
            kinds[_kind(value)] += 1


def _count_label(row: Row, data: DataContract, roles: Mapping[str, bool], tally: _Tally) -> str | None:
    if "label" not in data.columns:
        return None
    label = code(row.values.get(data.columns["label"]))
    if not label:
        if roles.get("label", False):
            tally.fault("empty:label", row.number)
        return None
    tally.labels[label] += 1
    if data.labels and label not in set(map(code, data.labels)):
        tally.outside += 1
        tally.fault("label_not_listed", row.number)
    return label


def _count_names(row: Row, data: DataContract, tally: _Tally) -> None:
    if data.id_column is not None:
        name = plain(row.values.get(data.id_column))
        tally.duplicate_ids += bool(name) and _seen(_digest(name), tally.seen_ids)
    if data.unit_column is not None:
        unit = plain(row.values.get(data.unit_column))
        if unit:
            tally.units[_digest(unit)] += 1
        else:
            tally.fault("empty:unit", row.number)


def _text(row: Row, data: DataContract, roles: Mapping[str, bool], tally: _Tally) -> str:
    """The text of all roles but the label, one a line."""
    parts = []
    for role, needed in roles.items():
        if role == "label":
            continue
        if role == "text" and data.template is not None:
            try:
                part = render(data.template, row.values) if says_something(data.template, row.values) else ""
            except UnknownCodeError as error:
                tally.fault(f"unknown_code:{error}", row.number)
                continue
        else:
            part = "\n".join(_strings(row.values.get(data.columns.get(role, ""))))
        if part:
            parts.append(part)
        elif needed:
            tally.fault(f"empty:{role}", row.number)
    return "\n".join(parts)


def _strings(value: Any) -> Iterator[str]:
    """Text inside a value: itself, or the contents of its messages."""
    if isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        yield from _strings(value["content"] if "content" in value else list(value.values()))
    elif value is not None and not isinstance(value, bytes):
        text = (value if isinstance(value, str) else plain(value)).strip()
        if text:
            yield text


def _count_text(text: str, label: str | None, tally: _Tally) -> None:
    digest = _digest(text)
    if digest not in tally.seen_texts:
        tally.seen_texts[digest] = label
        return
    tally.duplicate_texts += 1
    if tally.seen_texts[digest] != label:
        tally.conflicting.add(digest)


def _token_lengths(texts: Iterator[str], encode_lengths: EncodeLengths | None) -> array[int]:
    lengths = array("q")
    while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        if encode_lengths is not None:
            lengths.extend(encode_lengths(batch))
    return lengths


def _report(spec: SourceSpec, data: DataContract, tally: _Tally, lengths: array[int]) -> DataReport:
    tokens = spread(lengths)
    rows_a_unit = spread(list(tally.units.values()))
    return DataReport(
        source=spec.path,
        rows=tally.rows,
        readable=tally.readable,
        columns={
            name: ColumnReport(filled=tally.filled[name], kinds=dict(kinds))
            for name, kinds in tally.kinds.items()
        },
        labels=dict(tally.labels.most_common(MOST_LABELS)),
        labelled=tally.labels.total(),
        distinct_labels=len(tally.labels),
        labels_outside=tally.outside,
        characters=spread(tally.characters),
        tokens=None
        if tokens is None
        else TokenReport(
            lengths=tokens,
            max_length=data.max_length,
            cut=sum(length > data.max_length for length in lengths),
        ),
        duplicate_rows=tally.duplicate_rows,
        duplicate_texts=tally.duplicate_texts,
        conflicting_texts=len(tally.conflicting),
        duplicate_ids=tally.duplicate_ids,
        units=None if rows_a_unit is None else UnitReport(units=len(tally.units), rows=rows_a_unit),
        faults={
            reason: Fault(rows=rows, first=tuple(tally.fault_lines[reason]))
            for reason, rows in tally.fault_rows.most_common()
        },
    )


def _seen(digest: bytes, before: set[bytes]) -> bool:
    if digest in before:
        return True
    before.add(digest)
    return False


def _digest(value: Any) -> bytes:
    written = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)
    return hashlib.blake2b(written.encode(errors="surrogatepass"), digest_size=16).digest()


def _kind(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return "text"
        return "number as text"
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return type(value).__name__
