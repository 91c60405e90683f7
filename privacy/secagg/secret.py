"""Bytes that must not be seen: they do not show in a repr, a log line or a traceback."""

from __future__ import annotations

import hmac
import os
from typing import NoReturn, final

SECRET_BYTES = 32


@final
class Secret:
    """Secret bytes. Drop the last reference as soon as it is used.

    Python cannot wipe memory: a copy may stay in the process until it ends (docs/threat-model.md).
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    @staticmethod
    def fresh() -> Secret:
        """32 bytes from the operating system."""
        return Secret(os.urandom(SECRET_BYTES))

    def reveal(self) -> bytes:
        """The bytes themselves: for key derivation, sharing and encryption only."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({len(self._value)} bytes)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> NoReturn:
        raise TypeError("a secret is no key of a table")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
