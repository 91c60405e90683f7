"""The rows of a ledger, as values: what each says, and its bytes.

Rows hold no unit's hash: a list of units is a file of its own, and its row has the digest. So rows can be
shown to whoever is to check them, as they are. A kind is never removed and never means something else later.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from wardround.client.ledger.policy import BudgetPolicy
from wardround.core.checked import Frozen, invalid
from wardround.core.errors import ConfigError, StorageError
from wardround.core.plan import HexKey
from wardround.privacy.accounting.mechanisms import Mechanism

Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256, strict=True)]
Reason: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=2000, strict=True)]
Digest: TypeAlias = HexKey
"""SHA-256, in hex."""
HeadDigest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{56}$", strict=True)]
"""First part of a row's head, in hex, as peers keep it."""
Count: TypeAlias = Annotated[int, Field(ge=0, strict=True)]
Unit: TypeAlias = Literal["patient", "example"]
"""What one clipped contribution was of. Whatever it was, the patient is charged."""
Why: TypeAlias = Literal["cap", "released", "no_privacy", "sealed"]
"""What a refusal is for: the cap, units without a bound, a run without privacy, a sealed stage."""


class Row(Frozen):
    """What every row has."""

    row: Count
    """Its number, from 0."""
    at: Count
    """When it was written, in seconds since 1970; by the site's clock, which nothing depends on."""


class Opened(Row):
    """Row 0."""

    kind: Literal["opened"] = "opened"
    version: Literal[1] = 1
    key: Digest
    """Public key of all signatures."""
    check: Digest
    """Of the secret that units are hashed under: `LedgerKeys.check`."""
    policy: BudgetPolicy
    units: Annotated[int, Field(ge=1, strict=True)]
    """How many the site said that it has."""
    order: float | None
    """The Rényi order of the cap, chosen before the first entry; None without a cap."""


class Amended(Row):
    """Somebody changed the policy. The order of the cap stays; where there was none, it is chosen here."""

    kind: Literal["policy"] = "policy"
    policy: BudgetPolicy
    order: float | None
    who: Text
    why: Reason


class SourceAdded(Row):
    """A list of units got a name."""

    kind: Literal["source"] = "source"
    source: Count
    """Its number, from 0; that of the first row with this list, where the list only got another name."""
    name: Text
    digest: Digest
    """Of the list's file."""
    units: Count
    unknown: Count
    """Ids that no earlier list had, where there was one."""
    contested: Count
    """Units with the content of one that has another id, which no declaration covers."""


class Disjoint(Row):
    """Somebody signs that the ids new with a source are nobody whom the ledger knew before."""

    kind: Literal["disjoint"] = "disjoint"
    source: Count
    who: Text
    why: Reason


class Place(Row):
    """What is about one stage of one round of a run."""

    run: Text
    round: Count
    stage: Count


class Terms(Frozen):
    """What a reservation charges: the same in every round of a run, as a rule."""

    run: Text
    plan: Digest
    source: Count
    unit: Unit
    mechanism: Mechanism
    """As the patient is charged for it."""


class Reserved(Row):
    """Every unit of a source is charged, before any of its data is touched."""

    kind: Literal["reserve"] = "reserve"
    round: Count
    stage: Count
    draw: Text
    """Which draw of batches and noise this is: another one is charged on top."""
    terms: Terms
    """Last in the canonical form, where whoever reads many rows takes equal terms together."""


class Settled(Place):
    """Fewer steps ran than were reserved."""

    kind: Literal["settle"] = "settle"
    draw: Text
    steps: Count
    """So many ran."""


class Sealed(Place):
    """The round's contribution stands, and may leave from now on. No other one ever will."""

    kind: Literal["seal"] = "seal"
    digest: Digest


class Released(Row):
    """A run without differential privacy: ε of these units is infinite."""

    kind: Literal["release"] = "release"
    source: Count
    run: Text
    plan: Digest


class Refused(Place):
    """What was asked for and not done."""

    kind: Literal["refusal"] = "refusal"
    reason: Why
    source: Count | None
    draw: Text
    reached: float | None
    """ε that it would have come to; None where that is infinite, or the refusal is not about ε."""


class WrittenOff(Row):
    """Rows were lost: whatever they said is charged as the whole cap, to every unit."""

    kind: Literal["write_off"] = "write_off"
    who: Text
    why: Reason
    runs: tuple[Text, ...] = ()
    """Runs that the lost rows may have been about, beside those in the rows before this one."""
    beside: bool = False
    """The ledger went on after it was put back: what stands before this row counts beside the cap."""
    epsilon: float | None = None
    """A cap that the lost rows had, where it was higher than the one here."""


class Joined(Row):
    """A ledger that was put back had gone another way: those rows are counted after the true ones."""

    kind: Literal["branch"] = "branch"
    common: Count
    """Rows that both have."""
    heads: tuple[HeadDigest, ...]
    """Of the other rows, in order, and of branches in them: peers may have seen any."""


class Mended(Row):
    """A torn last line was cut off."""

    kind: Literal["mend"] = "mend"
    who: Text
    why: Reason
    cut_bytes: Count
    cut_digest: Digest


AnyRow: TypeAlias = Annotated[
    Opened | Amended | SourceAdded | Disjoint | Reserved | Settled | Sealed | Released | Refused
    | WrittenOff | Mended | Joined,
    Field(discriminator="kind"),
]  # fmt: skip
_ROWS: Final[TypeAdapter[AnyRow]] = TypeAdapter(AnyRow)
_PLAIN: Final = re.compile(
    rb'\{"at":\d+,"draw":"([^"\\]*)","kind":"reserve","round":(\d+),"row":\d+,"stage":(\d+)'
).fullmatch
_SEAL: Final = re.compile(
    rb'\{"at":\d+,"digest":"([0-9a-f]{64})","kind":"seal","round":(\d+),"row":(\d+),'
    rb'"run":"([^"\\]*)","stage":(\d+)\}'
).fullmatch
"""Of the kinds of row of which there are many, those that can be read without a parser."""
_fields = TypeAdapter(dict[str, Any]).validator.validate_json


F = TypeVar("F", bound=Frozen)


def checked(kind: type[F], **fields: Any) -> F:
    """A row, or a part of one.

    Raises:
        ConfigError: A field is none; names it.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        raise invalid("ledger row", error) from error


def require_named(who: str, why: str) -> None:
    """Refuse what nobody signs for, or for no reason.

    Raises:
        ConfigError: It is empty, or too long to be kept.
    """
    for what, text, most in (("a person", who, 256), ("a reason", why, 2000)):
        if not 0 < len(text.strip()) <= len(text) <= most:
            raise ConfigError(
                f"the ledger records who does this and why: {what} is missing",
                found=f"{len(text)} characters", expected=f"1 to {most}",
            )  # fmt: skip


def canonical(row: Row) -> bytes:
    """Sorted, compact JSON: what is chained and signed."""
    fields = row.model_dump(mode="json")
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def split_terms(body: bytes, number: int) -> tuple[bytes, bytes]:
    """A reservation's body up to its terms, and the terms; two times nothing of any other row.

    No text in a row can hold the words that this looks for, since its quotation marks would be escaped.

    Raises:
        StorageError: It is a row of another number.
    """
    front, found, terms = body.partition(b',"terms":')
    if not found:
        return b"", b""
    if b',"row":%d,"stage":' % number not in front:
        fields_of(front + b"}", number)
    return front, terms[:-1]


def place_of(front: bytes, number: int) -> tuple[str, tuple[int, int]]:
    """Draw, round and stage of a reservation, of its body up to the terms.

    Raises:
        StorageError: It cannot be read.
    """
    plain = _PLAIN(front)
    if plain is not None:
        return plain[1].decode(), (int(plain[2]), int(plain[3]))
    fields = fields_of(front + b"}", number)
    return fields["draw"], (fields["round"], fields["stage"])


def plain_seal(body: bytes, number: int) -> tuple[str, int, int, str] | None:
    """Run, round, stage and digest of a seal, where its run needs no JSON; of other rows None."""
    found = _SEAL(body)
    if found is None or int(found[3]) != number:
        return None
    return found[4].decode(), int(found[2]), int(found[5]), found[1].decode()


def fields_of(body: bytes, number: int) -> dict[str, Any]:
    """A row's fields as they are, unchecked: for the many rows that this site signed and reads again.

    Raises:
        StorageError: Not a row, or one of another number.
    """
    try:
        fields: dict[str, Any] = _fields(body)
    except ValidationError:
        raise _unreadable(number) from None
    if fields.get("row") != number:
        raise StorageError(
            f"row {number} of the ledger is another one", found=f"row {fields.get('row')}",
            expected=f"row {number}",
            remedy="a row was removed, inserted, repeated or moved: put the ledger back as it was",
        )  # fmt: skip
    return fields


def typed(fields: dict[str, Any], number: int) -> AnyRow:
    """The row that these fields make.

    Raises:
        StorageError: A kind or a field that this version does not know.
    """
    try:
        return _ROWS.validate_python(fields)
    except ValidationError:
        raise _unreadable(number) from None


def _unreadable(number: int) -> StorageError:
    return StorageError(
        f"row {number} of the ledger cannot be read", found="other fields",
        expected="a row of version 1", remedy="read it with the version of wardround that wrote it",
    )  # fmt: skip
