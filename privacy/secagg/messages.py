"""The messages of one attempt: typed values, what is signed of them, and how they become bytes.

On the wire: four bytes that name protocol and version, the length of a JSON head, the head, and for a masked
vector its packed integers. Sizes are checked before anything is read; a head is validated strictly.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, InstanceOf, ValidationError

from wardround.core.errors import PeerError
from wardround.privacy.packing import packed_size
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import SIGNATURE_BYTES, statement
from wardround.privacy.secagg.offer import Digest, Offer, SiteName, Wire
from wardround.privacy.secagg.secret import SECRET_BYTES
from wardround.privacy.secagg.shamir import SHARE_BYTES

MAGIC = b"WSA1"
_HEAD = struct.Struct("<4sI")
LARGEST_HEAD = 1 << 26
LARGEST_SHORT_HEAD = 1 << 12
"""Of a message that holds no list: a complaint is one, and the head of a masked vector."""
SEALED_BYTES = 2 * SHARE_BYTES + 16
HEAD_BYTES = 64
NO_HEAD = bytes(HEAD_BYTES)
"""In place of a ledger's head that there is not, where all messages are to have one length."""

PublicKey = Annotated[bytes, Field(min_length=32, max_length=32)]
Signature = Annotated[bytes, Field(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
LedgerHead = Annotated[bytes, Field(max_length=HEAD_BYTES)]
Sealed = Annotated[bytes, Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]


class Message(Wire):
    """What all messages of a site have: who, and a signature over kind, context, site and content."""

    KIND: ClassVar[str]
    site: SiteName
    signature: Signature = bytes(SIGNATURE_BYTES)

    def content(self) -> tuple[bytes | str | int, ...]:
        """What is signed beside kind, context and site."""
        raise NotImplementedError

    def statement(self, context: bytes) -> bytes:
        """The signed bytes."""
        return statement(self.KIND, context, self.site, *self.content())


class Advertisement(Message):
    """Phase 1: fresh public keys for this attempt, and commitments."""

    KIND: ClassVar[str] = "advertise"
    kind: Literal["advertise"] = "advertise"
    channel_key: PublicKey
    """X25519; shares to this site are sealed to it."""
    mask_key: PublicKey
    """X25519; pairwise masks come from it."""
    commitment: Digest
    """To the seed of the self-mask."""
    graph_commitment: Digest
    """To what this site adds to the draw of the graph."""
    ledger_head: LedgerHead = b""
    """Head of the site's privacy ledger, which nobody else can read: peers keep it, and give it back."""

    def content(self) -> tuple[bytes | str | int, ...]:
        """Everything."""
        return self.channel_key, self.mask_key, self.commitment, self.graph_commitment, self.ledger_head


class Opening(Message):
    """Phase 1b, in regular graphs only: what the site had committed to for the draw of the graph."""

    KIND: ClassVar[str] = "opening"
    kind: Literal["opening"] = "opening"
    advertised: Digest
    """Transcript of all advertisements."""
    value: Digest

    def content(self) -> tuple[bytes | str | int, ...]:
        """Transcript and value."""
        return self.advertised, self.value


class Box(Wire):
    """Two shares for one recipient, sealed, and signed by the dealer so that a bad one is its own."""

    recipient: SiteName
    sealed: Sealed
    head: LedgerHead = b""
    """The recipient's ledger's, as the dealer has kept it of earlier sums; `boxes.py` binds it."""
    signature: Signature = bytes(SIGNATURE_BYTES)

    @property
    def parts(self) -> tuple[bytes | str, ...]:
        """All of it but the signature."""
        return self.recipient, self.sealed, self.head

    def statement(self, context: bytes, dealer: str, agreed: bytes) -> bytes:
        """The signed bytes."""
        return statement("box", context, dealer, agreed, *self.parts)


class Dealing(Message):
    """Phase 2: a box for every neighbour."""

    KIND: ClassVar[str] = "deal"
    kind: Literal["deal"] = "deal"
    agreed: Digest
    """Transcript of the keys, and of the graph."""
    boxes: tuple[Box, ...]

    def content(self) -> tuple[bytes | str | int, ...]:
        """Everything, the boxes' own signatures included."""
        parts = (part for box in self.boxes for part in (*box.parts, box.signature))
        return self.agreed, digest("boxes", *parts)


class Complaint(Message):
    """Instead of phase 3: a box that its dealer signed does not open. The channel key shows who lied."""

    KIND: ClassVar[str] = "complain"
    kind: Literal["complain"] = "complain"
    dealer: SiteName
    box: Box
    channel_secret: Annotated[bytes, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]

    def content(self) -> tuple[bytes | str | int, ...]:
        """Everything."""
        return self.dealer, *self.box.parts, self.box.signature, self.channel_secret


class Laned(Wire):
    """What carries both lanes: they follow the head, and are no part of it."""

    coordinates: bytes | InstanceOf[memoryview] = Field(default=b"", repr=False, exclude=True)
    """Packed ring integers."""
    counters: bytes | InstanceOf[memoryview] = Field(default=b"", repr=False, exclude=True)
    """Packed, 64 bits each."""

    @cached_property
    def encoded(self) -> bytes:
        """All of it as bytes."""
        return b"".join((_head(self), self.coordinates, self.counters))


class MaskedInput(Laned, Message):
    """Phase 3: both lanes under masks."""

    KIND: ClassVar[str] = "masked"
    kind: Literal["masked"] = "masked"
    dealt: Digest
    """Transcript of the dealings."""

    def content(self) -> tuple[bytes | str | int, ...]:
        """Transcript and hashes of both lanes."""
        lanes = (self.coordinates, self.counters)
        return self.dealt, *(hashlib.sha256(lane).digest() for lane in lanes)


class Confirmation(Message):
    """Phase 4: the one set of survivors that this site helps to open, ever."""

    KIND: ClassVar[str] = "confirm"
    kind: Literal["confirm"] = "confirm"
    survived: Digest
    """Transcript up to the set of survivors."""

    def content(self) -> tuple[bytes | str | int, ...]:
        """The transcript."""
        return (self.survived,)


class Unmasking(Message):
    """Phase 5: of every neighbour one kind of share, never both."""

    KIND: ClassVar[str] = "unmask"
    kind: Literal["unmask"] = "unmask"
    survived: Digest
    self_shares: dict[SiteName, Share] = Field(repr=False)
    """Of the self-mask seeds of survivors."""
    key_shares: dict[SiteName, Share] = Field(repr=False)
    """Of the mask keys of those that dropped out."""

    def content(self) -> tuple[bytes | str | int, ...]:
        """Everything."""
        return (
            self.survived,
            digest(
                "self shares",
                *(p for site in sorted(self.self_shares) for p in (site, self.self_shares[site])),
            ),
            digest(
                "key shares", *(p for site in sorted(self.key_shares) for p in (site, self.key_shares[site]))
            ),
        )


class Advertised(Wire):
    """To all after phase 1: every advertisement."""

    kind: Literal["advertised"] = "advertised"
    advertisements: tuple[Advertisement, ...]


class Opened(Wire):
    """To all after phase 1b: every opening."""

    kind: Literal["opened"] = "opened"
    openings: tuple[Opening, ...]


class Delivery(Wire):
    """To one site after phase 2: who dealt, and the boxes for this site."""

    kind: Literal["delivery"] = "delivery"
    dealers: tuple[SiteName, ...]
    boxes: dict[SiteName, Box]


class Survivors(Wire):
    """To all after phase 3: whose masked vectors are in the sum."""

    kind: Literal["survivors"] = "survivors"
    sites: tuple[SiteName, ...]


class Confirmed(Wire):
    """To all after phase 4: everybody's confirmation of one and the same set."""

    kind: Literal["confirmed"] = "confirmed"
    confirmations: tuple[Confirmation, ...]


W = TypeVar("W", bound=Wire)
L = TypeVar("L", bound=Laned)


def encode(message: Wire) -> bytes:
    """Bytes of a message."""
    return message.encoded if isinstance(message, Laned) else _head(message)


def laned(draft: L, pieces: Iterable[memoryview], sizes: tuple[int, int], sign: Callable[[L], L]) -> L:
    """A message around its lanes, which are written once, where they stand when it is encoded.

    Args:
        draft: The message without lanes, its signature zeros.
        pieces: Both lanes, one after the other.
        sizes: Bytes of both.
        sign: Gives a message its signature.
    """
    room = len(_head(draft))
    file = BytesIO(bytes(room + sum(sizes)))
    file.seek(room)
    file.writelines(pieces)
    with file.getbuffer() as view:
        signed = _with_lanes(sign(_with_lanes(draft, view[room:], sizes[0])), memoryview(b""), 0)
        view[:room] = _head(signed)
    whole = file.getvalue()  # the buffer itself, not a copy of it, since no view is left
    message = _with_lanes(signed, memoryview(whole)[room:], sizes[0])
    message.__dict__["encoded"] = whole  # as if computed: a copy of the message drops it
    return message


def decode(data: bytes, model: type[W], offer: Offer | None = None, *, lanes: tuple[int, int] = (0, 0)) -> W:
    """Read one message.

    Args:
        data: What arrived.
        model: What is expected in this phase; another kind is refused.
        offer: Needed for a masked vector, whose lengths follow from it.
        lanes: Bytes of both lanes, of whatever else carries them.

    Raises:
        PeerError: Another protocol, length, kind or type.
    """
    if len(data) < _HEAD.size:
        raise PeerError("a message is too short", found=f"{len(data)} bytes")
    magic, size = _HEAD.unpack_from(data)
    if model is MaskedInput and offer is not None:
        lanes = packed_size(offer.coordinates, offer.bits), packed_size(offer.counters, 64)
    if magic != MAGIC:
        raise PeerError("a message is of another protocol or version", expected=MAGIC.decode())
    if size > LARGEST_HEAD or len(data) != _HEAD.size + size + sum(lanes):
        raise PeerError(
            "a message has the wrong length", found=f"{len(data)} bytes",
            expected=f"a head of at most {LARGEST_HEAD} bytes and a payload of {sum(lanes)}",
        )  # fmt: skip
    head, payload = data[_HEAD.size : _HEAD.size + size], memoryview(data)[_HEAD.size + size :]
    try:
        message: W = _shared(model, bytes(head)) if model.SHARED else model.model_validate_json(head)
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)]
        raise PeerError(
            f"a message is not a valid {model.__name__}",
            found=", ".join(filter(None, places[:5])) or "no JSON",
        ) from error
    if not isinstance(message, Laned):
        return message
    if message.model_fields_set & Laned.model_fields.keys():
        raise PeerError("a message carries its lanes in its head", expected="behind it")
    return _with_lanes(message, payload, lanes[0])


@lru_cache(maxsize=8)  # those of a round and of the one before, of both sums, in several stages
def _shared(model: type[W], head: bytes) -> W:
    """What one head says, whoever reads it: all sites of a simulation are sent the same.

    It names the whole cohort: read anew by every site, a round would take the square of the sites.
    """
    return model.model_validate_json(head)


def kind_of(data: bytes) -> str:
    """The kind that a short message of a site gives itself; empty where it gives none."""
    if len(data) < _HEAD.size or _HEAD.unpack_from(data)[1] > LARGEST_SHORT_HEAD:
        return ""
    try:
        head = json.loads(data[_HEAD.size : _HEAD.size + _HEAD.unpack_from(data)[1]])
    except (ValueError, RecursionError):
        return ""
    kind = head.get("kind") if isinstance(head, dict) else None
    return kind if isinstance(kind, str) else ""


def _head(message: Wire) -> bytes:
    head = message.model_dump_json().encode()
    return _HEAD.pack(MAGIC, len(head)) + head


def _with_lanes(message: L, payload: memoryview, coordinates: int) -> L:
    return message.model_copy(
        update={"coordinates": payload[:coordinates], "counters": payload[coordinates:]}
    )
