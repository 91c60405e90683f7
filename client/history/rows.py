"""The rows of a history, as values. A kind is never removed and never means something else later."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, StringConstraints, ValidationError

from wardround.client.ledger.chain import Record
from wardround.client.ledger.rows import Count, Digest, Row, Text
from wardround.core.checked import Frozen
from wardround.core.errors import PeerError, StorageError

Kind: TypeAlias = Literal["answer", "reply", "error", "question", "other"]
"""What left: the answer to the offer of a plan; a reply to a request of a round; an error in place of either;
a signed question of this site's to the server; or something that this version cannot read."""
Short: TypeAlias = Annotated[str, StringConstraints(max_length=256, strict=True)]
Place: TypeAlias = Annotated[int, Field(ge=0, strict=True)] | None
ALTERED: Final = (
    "the file is not what this site wrote: put the last whole copy back; where there is none, move the "
    "folder away and keep it for whoever looks into it, and the next start begins a new history"
)
HISTORY: Final = Record("history", "wardround history row 1", ALTERED)


class Begun(Row):
    """Row 0."""

    kind: Literal["begun"] = "begun"
    version: Literal[1] = 1
    site: Text
    """Name of the site."""
    key: Digest
    """Public key of all signatures."""


class Left(Frozen):
    """One message that is about to leave.

    Attributes:
        kind: See `Kind`.
        run: Id of the run that it is about; empty where it is about none, or nobody can tell.
        round: Of that run; None of what belongs to no round. So are `stage`, `attempt` and `exchange`.
        sums: Which sums it belongs to.
        note: The verdict, status or error code that it carries, or the path that is asked for.
        bytes: Of the announcement and of all contents; without what TLS, HTTP and their retries add.
        digest: SHA-256 of the announcement, which names the SHA-256 of every piece of the contents.
    """

    kind: Kind
    run: Short = ""
    round: Place = None
    stage: Place = None
    attempt: Place = None
    exchange: Place = None
    sums: tuple[Short, ...] = ()
    note: Short = ""
    bytes: Count
    digest: Digest


class Sent(Row):
    """One message that was about to leave, and may have."""

    left: Left


def read_left(fields: Any) -> Left:
    """What another process says is about to leave.

    Raises:
        PeerError: It is none.
    """
    try:
        return Left.model_validate(fields)
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)]
        raise PeerError("what is to leave cannot be recorded", found=", ".join(places)) from None


def read_row(body: bytes, number: int) -> Begun | Sent:
    """The row in a body.

    Raises:
        StorageError: It is none of these rows, or another one's number.
    """
    kind = Sent if number else Begun
    try:
        row = kind.model_validate(json.loads(body))
    except (ValueError, ValidationError):
        raise StorageError(
            f"row {number} of the history is none that this version reads", expected=f"a {kind.__name__}",
            remedy=ALTERED,
        ) from None  # fmt: skip
    if row.row != number:
        raise StorageError(
            f"row {number} of the history has another number", found=row.row, expected=number, remedy=ALTERED
        )
    return row
