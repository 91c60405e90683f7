"""A training plan under the consortium's signature: without it a site trains nothing.

The key stays on the operator's computer. Whoever reads a plan knows the key that it has to be signed with; a
key that comes with the plan proves nothing.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError, PeerError
from wardround.runtime.signed import read_document, sign_document

KIND: Final = "plan"
LARGEST_PLAN: Final = 8 * 2**20
"""Bytes of a plan, and of its envelope; an adapter of some ten thousand tensors is told in less."""


def sign_plan(document: SignedPlan, key: Ed25519PrivateKey) -> bytes:
    """The envelope under the consortium's key.

    Raises:
        ConfigError: The plan would be larger than any reader takes.
    """
    data = sign_document(KIND, document, key)
    if len(data) > LARGEST_PLAN:
        raise ConfigError(
            "the plan is too large to be read again",
            found=f"{len(data)} bytes",
            expected=f"at most {LARGEST_PLAN}",
            remedy="fewer adapted modules in adapter.options.targets, or fewer public texts",
        )
    return data


def read_signed_plan(data: bytes, consortium_key: bytes) -> SignedPlan:
    """The plan in an envelope, if the consortium signed it.

    Args:
        data: The envelope; its size is looked at before anything is parsed.
        consortium_key: Ed25519 public key that is pinned, 32 bytes.

    Raises:
        PeerError: Too large, no such envelope, another signer, altered, or not a plan of this version.
    """
    document = read_document(data, KIND, SignedPlan, signer=consortium_key, largest=LARGEST_PLAN)
    try:
        document.canonical()  # also of the plan: nothing is trained that cannot be digested
    except ConfigError as error:
        raise PeerError(error.what, found=error.found, expected=error.expected) from error
    return document
