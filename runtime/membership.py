"""What an operator and a site send each other before they trust each other: invitation, request, notice.

An invitation is signed by the consortium key, whose fingerprint the two compare on the phone. A request is
signed with each key that it names, so that nobody asks for a key that somebody else holds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384
from pydantic import Field, StringConstraints, model_validator

from wardround.core.checked import Frozen
from wardround.core.errors import PeerError
from wardround.privacy.secagg.hashing import digest, framed
from wardround.privacy.secagg.identity import check
from wardround.privacy.secagg.offer import SiteName
from wardround.runtime.certificates import LARGEST_BUNDLE, read_authorities
from wardround.runtime.roster import (
    LARGEST_CERTIFICATE,
    LARGEST_ROSTER,
    Address,
    ConsortiumName,
    Moment,
    RosterDocument,
    ServerCertificate,
    TransportKey,
    check_times,
    read_certificate,
    read_roster,
)
from wardround.runtime.signed import Hex32, Hex64, canonical, claimed_signer, read_document, sign_document

INVITATION: Final = "invitation"
JOIN: Final = "join request"
ROTATION: Final = "rotation request"
LEAVING: Final = "leaving request"
NOTICE: Final = "server notice"
LARGEST_INVITATION: Final = 2 * (LARGEST_ROSTER + LARGEST_CERTIFICATE + LARGEST_BUNDLE)
LARGEST_REQUEST: Final = 2**14
LARGEST_NOTICE: Final = 2**17
_GROUP: Final = 4
_TRANSPORT_PROOF: Final = "wardround transport proof"
_IDENTITY_PROOF: Final = "wardround identity proof"
_Proof = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){8,110}$", strict=True)]


def fingerprint(key: bytes) -> str:
    """Of a public key, 32 bytes in hexadecimal: what people compare on the phone."""
    return digest("wardround consortium key", key).hex()


def spoken(value: str) -> str:
    """Hexadecimal digits in groups of four, to be read out."""
    return " ".join(value[start : start + _GROUP] for start in range(0, len(value), _GROUP))


def same_spoken(said: str, value: str) -> bool:
    """Whether somebody said these digits, all of them; spaces, colons, dashes and case do not count."""
    return "".join(c for c in said.lower() if c not in " \t\n:-") == value


class Invitation(Frozen):
    """The one file that the operator sends to a site; for one site, once, until it expires.

    Attributes:
        consortium: Its name.
        key: The consortium's public key.
        address: Of the server.
        ca: The consortium's authority, in PEM.
        certificate: The signed `ServerCertificate`, as text.
        roster: The signed roster of this day, as text: the first that the site pins.
        site: The name that the site will have.
        nonce: Tells this invitation from every other; whoever has it may ask to be that site.
        issued: When.
        expires: When no request that answers it is admitted any more.
    """

    consortium: ConsortiumName
    key: Hex32
    address: Address
    ca: str = Field(max_length=LARGEST_BUNDLE)
    certificate: str = Field(max_length=LARGEST_CERTIFICATE)
    roster: str = Field(max_length=LARGEST_ROSTER)
    site: SiteName
    nonce: Hex32
    issued: Moment
    expires: Moment


class OpenedInvitation(NamedTuple):
    """An invitation whose signatures all hold under the key that it brings."""

    invitation: Invitation
    certificate: ServerCertificate
    roster: RosterDocument


class JoinRequest(Frozen):
    """A site's answer to its invitation.

    Attributes:
        consortium: Public key of the consortium.
        site: Its name there.
        nonce: Of the invitation.
        identity: Ed25519 public key of the site.
        transport: P-384 public key of its node.
        issued: When.
    """

    consortium: Hex32
    site: SiteName
    nonce: Hex32
    identity: Hex32
    transport: TransportKey
    issued: Moment

    @property
    def digest(self) -> str:
        """Of everything in it, 32 bytes in hexadecimal: what the site reads out to the operator."""
        return digest("wardround join request", canonical(self)).hex()


class RotationRequest(Frozen):
    """A member asks for new keys.

    Attributes:
        consortium: Public key of the consortium.
        site: The member.
        former: Its identity in the roster, which signs the request.
        identity: The new one, which signs as well.
        transport: The new transport key, which signs as well.
        issued: When.
    """

    consortium: Hex32
    site: SiteName
    former: Hex32
    identity: Hex32
    transport: TransportKey
    issued: Moment

    @model_validator(mode="after")
    def _other(self) -> Self:
        if self.former == self.identity:
            raise ValueError("the new identity is the former one")
        return self

    @property
    def digest(self) -> str:
        """Of everything in it, 32 bytes in hexadecimal: what the site reads out to the operator."""
        return digest("wardround rotation request", canonical(self)).hex()


class LeavingRequest(Frozen):
    """A member says that it has left: the operator may take it off the roster.

    Attributes:
        consortium: Public key of the consortium.
        site: The member.
        identity: Its identity in the roster, which signs the request.
        issued: When.
    """

    consortium: Hex32
    site: SiteName
    identity: Hex32
    issued: Moment

    @property
    def digest(self) -> str:
        """Of everything in it, 32 bytes in hexadecimal: what the site reads out to the operator."""
        return digest("wardround leaving request", canonical(self)).hex()


class _ProvenJoin(Frozen):
    request: JoinRequest
    transport_proof: _Proof


class _ProvenRotation(Frozen):
    request: RotationRequest
    transport_proof: _Proof
    identity_proof: Hex64


class ServerNotice(Frozen):
    """What sites have to know when the server's certificate or the authority is another.

    Attributes:
        consortium: Its name.
        ca: Authorities in PEM, all that sites are to trust from now on.
        certificate: The signed `ServerCertificate`, as text; its date says which of two notices is later.
    """

    consortium: ConsortiumName
    ca: str = Field(max_length=LARGEST_BUNDLE)
    certificate: str = Field(max_length=LARGEST_CERTIFICATE)


def read_invitation(data: bytes, now: datetime, *, pinned: str | None = None) -> OpenedInvitation:
    """Check an invitation.

    Args:
        data: The file's content.
        now: The present moment.
        pinned: The fingerprint that a person got in another way; without it the key inside is taken at its
            word, and its fingerprint has to be compared afterwards.

    Raises:
        PeerError: It is too large, none, altered, of another consortium than `pinned`, expired, or what is
            in it does not fit together.
    """
    key = claimed_signer(data, INVITATION, largest=LARGEST_INVITATION)
    if pinned is not None and not same_spoken(pinned, fingerprint(key)):
        raise PeerError(
            "the invitation is another consortium's", found=f"fingerprint {spoken(fingerprint(key))}",
            expected="the fingerprint that was given", remedy="do not use it: call the operator",
        )  # fmt: skip
    invitation = read_document(data, INVITATION, Invitation, signer=key, largest=LARGEST_INVITATION)
    check_times("the invitation", invitation.issued, invitation.expires, now)
    read_authorities(invitation.ca.encode())
    certificate = read_certificate(invitation.certificate.encode(), key)
    certificate.check(now)
    roster = read_roster(invitation.roster.encode(), key)
    named = {invitation.consortium, certificate.consortium, roster.consortium}
    if invitation.key != key.hex() or len(named) > 1 or certificate.address != invitation.address:
        raise PeerError(
            "the invitation contradicts itself", expected="one key, one consortium, one address throughout",
            remedy="ask the operator for a new one",
        )  # fmt: skip
    return OpenedInvitation(invitation, certificate, roster)


def sign_join(request: JoinRequest, identity: Ed25519PrivateKey, transport: EllipticCurvePrivateKey) -> bytes:
    """The signed request, with the proof that its transport key is the site's."""
    proof = transport.sign(framed(_TRANSPORT_PROOF, JOIN, canonical(request)), ECDSA(SHA384()))
    return sign_document(JOIN, _ProvenJoin(request=request, transport_proof=proof.hex()), identity)


def read_join(data: bytes) -> JoinRequest:
    """A request to join, both of whose keys signed it; whether it was invited is not judged.

    Raises:
        PeerError: It is too large, none, altered, or not signed by its own keys.
    """
    signer = claimed_signer(data, JOIN, largest=LARGEST_REQUEST)
    proven = read_document(data, JOIN, _ProvenJoin, signer=signer, largest=LARGEST_REQUEST)
    request = proven.request
    if request.identity != signer.hex():
        raise PeerError("a request asks for a key that did not sign it", remedy="ask the site for a new one")
    _check_transport(request.transport, proven.transport_proof, JOIN, canonical(request))
    return request


def sign_rotation(
    request: RotationRequest,
    former: Ed25519PrivateKey,
    identity: Ed25519PrivateKey,
    transport: EllipticCurvePrivateKey,
) -> bytes:
    """The signed request: by the former identity, the new one and the new transport key."""
    text = canonical(request)
    proven = _ProvenRotation(
        request=request,
        transport_proof=transport.sign(framed(_TRANSPORT_PROOF, ROTATION, text), ECDSA(SHA384())).hex(),
        identity_proof=identity.sign(framed(_IDENTITY_PROOF, ROTATION, text)).hex(),
    )
    return sign_document(ROTATION, proven, former)


def read_rotation(data: bytes) -> RotationRequest:
    """A request for new keys that the former identity and both new keys signed.

    Whether the former identity is that of the member is not judged.

    Raises:
        PeerError: It is too large, none, altered, or not signed by all three keys.
    """
    signer = claimed_signer(data, ROTATION, largest=LARGEST_REQUEST)
    proven = read_document(data, ROTATION, _ProvenRotation, signer=signer, largest=LARGEST_REQUEST)
    request, text = proven.request, canonical(proven.request)
    if request.former != signer.hex():
        raise PeerError("a rotation request is not signed by the member's former identity")
    identity, proof = bytes.fromhex(request.identity), bytes.fromhex(proven.identity_proof)
    check(identity, proof, framed(_IDENTITY_PROOF, ROTATION, text), "the new identity")
    _check_transport(request.transport, proven.transport_proof, ROTATION, text)
    return request


def sign_leaving(request: LeavingRequest, identity: Ed25519PrivateKey) -> bytes:
    """The signed request."""
    return sign_document(LEAVING, request, identity)


def read_leaving(data: bytes) -> LeavingRequest:
    """A request to be taken off the roster; whether its identity is the member's is not judged.

    Raises:
        PeerError: It is too large, none, altered, or not signed by the identity that it names.
    """
    signer = claimed_signer(data, LEAVING, largest=LARGEST_REQUEST)
    request = read_document(data, LEAVING, LeavingRequest, signer=signer, largest=LARGEST_REQUEST)
    if request.identity != signer.hex():
        raise PeerError("a leaving request names another identity than the one that signed it")
    return request


def read_notice(data: bytes, signer: bytes) -> tuple[ServerNotice, ServerCertificate]:
    """A signed notice under the pinned consortium key, and the certificate in it.

    Raises:
        PeerError: It is none, or what is in it does not fit together.
    """
    notice = read_document(data, NOTICE, ServerNotice, signer=signer, largest=LARGEST_NOTICE)
    read_authorities(notice.ca.encode())
    certificate = read_certificate(notice.certificate.encode(), signer)
    if certificate.consortium != notice.consortium:
        raise PeerError("a server notice contradicts itself", remedy="ask the operator for a new one")
    return notice, certificate


def _check_transport(point: str, proof: str, kind: str, text: str) -> None:
    public = EllipticCurvePublicKey.from_encoded_point(SECP384R1(), bytes.fromhex(point))
    try:
        public.verify(bytes.fromhex(proof), framed(_TRANSPORT_PROOF, kind, text), ECDSA(SHA384()))
    except InvalidSignature:
        raise PeerError(
            "a request is not signed by its transport key", expected="a proof that the site holds the key",
            remedy="ask the site for a new request",
        ) from None  # fmt: skip
