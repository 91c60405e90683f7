"""Documents that somebody signed: roster, plans, certificates, invitations, in one envelope of JSON.

The envelope holds the exact text that was signed, so that nobody has to agree on how a value is written:
the signature is checked over the text as it came, and only then is the text parsed. Signed are tag, kind and
text, each with its length in front: a signature of one kind never serves for another.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, StringConstraints, ValidationError

from wardround.core.checked import Frozen
from wardround.core.errors import PeerError
from wardround.privacy.secagg.hashing import framed
from wardround.privacy.secagg.identity import check

FORMAT: Final = "wardround signed 1"
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
"""32 bytes in lower case hexadecimal: a digest, or an Ed25519 public key."""
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$", strict=True)]
"""64 bytes in lower case hexadecimal: an Ed25519 signature."""
_FAULTS_SHOWN: Final = 5
_NAME_SHOWN: Final = 60

M = TypeVar("M", bound=BaseModel)


class Envelope(Frozen):
    """A text and who signed it.

    Attributes:
        format: Of this envelope.
        kind: What the text is: part of what is signed.
        document: The text, as it was signed.
        signer: Public key that the signature claims to be of; proves nothing.
        signature: Ed25519 (RFC 8032) over `signed_bytes`.
    """

    format: Literal["wardround signed 1"]
    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z ]{0,39}$", strict=True)]
    document: str
    signer: Hex32
    signature: Hex64


def canonical(document: BaseModel) -> str:
    """The JSON text of a value: keys sorted, no spaces; equal values have equal texts."""
    fields = document.model_dump(mode="json")
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def signed_bytes(kind: str, text: str) -> bytes:
    """What is signed for a text of this kind."""
    return framed(FORMAT, kind, text)


def sign_document(kind: str, document: BaseModel, key: Ed25519PrivateKey) -> bytes:
    """Sign a value.

    Args:
        kind: What it is, in lower case letters and spaces; whoever reads it has to ask for the same.
        document: The value; its canonical JSON is what is signed.
        key: Of the signer.

    Returns:
        The envelope: JSON with a newline at its end.
    """
    text = canonical(document)
    envelope = Envelope(
        format=FORMAT, kind=kind, document=text, signer=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(signed_bytes(kind, text)).hex(),
    )  # fmt: skip
    return (json.dumps(envelope.model_dump(), ensure_ascii=False, indent=1) + "\n").encode()


def read_document(data: bytes, kind: str, model: type[M], *, signer: bytes, largest: int) -> M:
    """Check an envelope and give what is in it.

    Args:
        data: The envelope.
        kind: What it has to be.
        model: Type of the value; read strictly.
        signer: Public key, 32 bytes, that is pinned: never one that came with the envelope.
        largest: Bytes that an envelope of this kind has at the most; judged before anything is parsed.

    Raises:
        PeerError: It is too large, no envelope, of another format, kind or signer, altered, or its text is
            not such a value.
    """
    envelope = _envelope(data, kind, largest)
    if envelope.kind != kind:
        raise PeerError("a signed document is of another kind", found=envelope.kind, expected=kind)
    if envelope.signer != signer.hex():
        raise PeerError(
            f"a signed document ({kind}) is from another signer", found=f"key {envelope.signer[:16]}…",
            expected=f"key {signer.hex()[:16]}…",
            remedy="it belongs to another consortium or site, or somebody pretends: ask the operator",
        )  # fmt: skip
    check(signer, bytes.fromhex(envelope.signature), signed_bytes(kind, envelope.document), kind)
    try:
        return model.model_validate_json(envelope.document, strict=True)
    except ValidationError as error:
        raise malformed(f"a signed document ({kind})", error) from error


def claimed_signer(data: bytes, kind: str, *, largest: int) -> bytes:
    """The key that an envelope names, 32 bytes: to look it up, or to show it to a person who compares it.

    Raises:
        PeerError: It is too large, or no envelope.
    """
    return bytes.fromhex(_envelope(data, kind, largest).signer)


def malformed(what: str, error: ValidationError) -> PeerError:
    """A PeerError that names the first faults of a validation, without any value."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False)[:_FAULTS_SHOWN]:
        place = ".".join(str(part) for part in fault["loc"])
        shown = "".join(c if c.isprintable() else "?" for c in place[:_NAME_SHOWN])
        message = "".join(c if c.isprintable() else "?" for c in fault["msg"].removeprefix("Value error, "))
        faults.append(f"{shown}: {message[:200]}" if shown else message[:200])
    return PeerError(
        f"{what} is not as it should be", found="; ".join(faults),
        remedy="it was damaged, or written by another version of Wardround: ask for it again",
    )  # fmt: skip


def _envelope(data: bytes, kind: str, largest: int) -> Envelope:
    if len(data) > largest:
        raise PeerError(
            f"a signed document ({kind}) is too large",
            found=f"{len(data)} bytes",
            expected=f"at most {largest}",
        )
    try:
        return Envelope.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise malformed(f"the envelope of a signed document ({kind})", error) from error
