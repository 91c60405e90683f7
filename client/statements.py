"""What a site's identity key signs: typed statements about sums and draws that the site has accepted.

The supervisor holds the key and reads each statement strictly. It signs for the last attempt at a sum alone
(and the run's one draw), says one thing in each phase of it, and opens no other survivors than it confirmed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from wardround.core.errors import PolicyError
from wardround.privacy import sealed
from wardround.privacy.secagg.draw import Agreed, Committed, DrawState, Shown
from wardround.privacy.secagg.hashing import DIGEST_BYTES, framed, unframed
from wardround.privacy.secagg.identity import PROTOCOL, SIGNATURE_BYTES
from wardround.privacy.secagg.messages import (
    HEAD_BYTES,
    SEALED_BYTES,
    Advertisement,
    Complaint,
    Confirmation,
    Dealing,
    MaskedInput,
    Opening,
    Unmasking,
)
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret
from wardround.privacy.secagg.transcript import commitment

Shape: TypeAlias = tuple[int | range | type[str], ...]
"""Of each part: so many bytes, a number of bytes in a range, or a text."""
_D: Final = DIGEST_BYTES
_HEAD: Final = range(HEAD_BYTES + 1)
BOX: Final = "box"
OF_SUMS: Final[Mapping[str, Shape]] = {
    Advertisement.KIND: (SECRET_BYTES, SECRET_BYTES, _D, _D, _HEAD),
    Opening.KIND: (_D, _D),
    BOX: (_D, str, SEALED_BYTES, _HEAD),
    Dealing.KIND: (_D, _D),
    Complaint.KIND: (str, str, SEALED_BYTES, _HEAD, SIGNATURE_BYTES, SECRET_BYTES),
    MaskedInput.KIND: (_D, _D, _D),
    Confirmation.KIND: (_D,),
    Unmasking.KIND: (_D, _D, _D),
    sealed.KIND: (_D, _D),
}
OF_DRAWS: Final[Mapping[str, Shape]] = {Committed.KIND: (_D,), Shown.KIND: (_D, _D), Agreed.KIND: (_D,)}
SHAPES: Final[Mapping[str, Shape]] = {**OF_SUMS, **OF_DRAWS}
"""Kind → what it says beside context and signer; the kinds that a site signs, and no other."""


@dataclass(frozen=True)
class Statement:
    """One statement, read.

    Attributes:
        kind: One of `SHAPES`.
        context: Digest of the offer that it belongs to.
        parts: What it says.
        digest: SHA-256 of all of it.
    """

    kind: str
    context: bytes
    parts: tuple[bytes | str | int, ...]
    digest: bytes


def read_statement(data: bytes, site: str) -> Statement:
    """Read what is to be signed in this site's name.

    Raises:
        PolicyError: It is no statement of secure aggregation, of another site, or malformed.
    """
    try:
        protocol, kind, context, signer, *parts = unframed(data)
    except (ValueError, UnicodeDecodeError):
        protocol = kind = signer = context = b""
        parts = []
    shape = SHAPES.get(kind) if isinstance(kind, str) else None
    if (protocol, signer) != (PROTOCOL, site) or shape is None or not _fits(context, _D):
        raise PolicyError(
            "the site's identity signs statements of secure aggregation and nothing else",
            found=f"{len(data)} bytes that are none of {site!r}",
        )
    assert isinstance(kind, str)  # noqa: S101 - it has a shape
    assert isinstance(context, bytes)  # noqa: S101 - it fits
    whole = len(parts) == len(shape) and all(map(_fits, parts, shape))
    if not whole or framed(PROTOCOL, kind, context, site, *parts) != data:
        raise PolicyError(f"a statement of the kind {kind!r} is malformed", found=f"{len(parts)} parts")
    return Statement(kind, context, tuple(parts), hashlib.sha256(data).digest())


def _fits(part: bytes | str | int, shape: int | range | type[str]) -> bool:
    if shape is str:
        return isinstance(part, str)
    return isinstance(part, bytes) and (
        len(part) in shape if isinstance(shape, range) else len(part) == shape
    )


@dataclass(frozen=True)
class _Attempt:
    """The last one at a sum.

    Attributes:
        offer: That was accepted.
        sealed: Context of the envelope that answers it, where contributions are sealed; None: they are not.
        said: Digest of what was said, by kind and recipient.
    """

    offer: Offer
    sealed: bytes | None
    said: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def belongs(self, statement: Statement) -> bool:
        """Whether a statement is of this attempt; where contributions are sealed, its envelope alone is."""
        if self.sealed is not None:
            return (statement.kind, statement.context) == (sealed.KIND, self.sealed)
        return statement.kind != sealed.KIND and statement.context == self.offer.context


@dataclass
class Spoken:
    """What the site may say now, and has said; of attempts that began since the supervisor started.

    So nothing is said twice: after a restart only an offer that is newer than the record begins an attempt.

    Attributes:
        site: Name of the site.
    """

    site: str
    _attempts: dict[str, _Attempt] = field(default_factory=dict)
    """Run of a sum → its last attempt."""
    _draws: dict[str, DrawState] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, offer: Offer, envelope: bytes | None = None) -> None:
        """An offer was accepted: of its sum's earlier attempts nothing is said any more.

        Args:
            offer: The offer.
            envelope: Context of the one envelope that answers it, where contributions are sealed.
        """
        with self._lock:
            self._attempts[offer.run_id] = _Attempt(offer, envelope)

    def draw(self, state: DrawState) -> None:
        """A draw has come so far."""
        if state.signed is not None:
            with self._lock:
                self._draws[state.signed.offer.run_id] = state

    def take(self, statement: Statement) -> None:
        """Refuse what the site must not say, and remember what it says.

        Raises:
            PolicyError: It belongs to no attempt under way, contradicts what was said in it, or names a site
                that is not in its cohort.
        """
        with self._lock:
            if statement.kind in OF_DRAWS:
                self._take_of_draw(statement)
            else:
                self._take_of_sum(statement)

    def _take_of_sum(self, statement: Statement) -> None:
        kind, parts = statement.kind, statement.parts
        attempt = next((held for held in self._attempts.values() if held.belongs(statement)), None)
        if attempt is None:
            raise _no_attempt(kind)
        offer, said = attempt.offer, attempt.said
        names = {part for part in parts if isinstance(part, str)}
        if not names <= set(offer.cohort) or (kind == BOX and self.site in names):
            raise PolicyError(f"a statement of the kind {kind!r} names a site that is none of its peers")
        if kind == Unmasking.KIND and said.get((Confirmation.KIND, "survived")) != parts[0]:
            raise PolicyError("shares would be given for other survivors than this site has confirmed")
        recipient = str(parts[1]) if kind == BOX else ""
        if said.setdefault((kind, recipient), statement.digest) != statement.digest:
            raise PolicyError(
                f"this site has made another statement of the kind {kind!r} in this attempt",
                remedy="the worker restarts; if it happens again, somebody may have taken it over",
            )
        if kind == Confirmation.KIND:
            said[kind, "survived"] = bytes(parts[0])  # type: ignore[arg-type]  # its shape

    def _take_of_draw(self, statement: Statement) -> None:
        for state in self._draws.values():
            if state.signed is not None and state.signed.offer.context == statement.context:
                break
        else:
            raise _no_attempt(statement.kind)
        expected: Mapping[str, tuple[bytes, ...]] = {
            Committed.KIND: (commitment(statement.context, self.site, Secret(state.value)),),
            Shown.KIND: (state.committed, state.value),
            Agreed.KIND: (state.groups,),
        }
        if statement.parts != expected[statement.kind]:
            raise PolicyError(
                f"a statement of the kind {statement.kind!r} is not what this site's record says"
            )


def _no_attempt(kind: str) -> PolicyError:
    return PolicyError(
        f"a statement of the kind {kind!r} belongs to no attempt that this site has begun",
        expected="one of the last offer that it accepted",
    )
