"""What the server says of itself to a member who asks: why the two might not understand each other."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from wardround import __version__
from wardround.core.plan import PLAN_VERSION
from wardround.runtime import flower_codec, offer_codec

LARGEST_ABOUT: Final = 4096
LARGEST_PROBE: Final = 2**20
"""Bytes of one probe of the line, at the most."""
_ACROSS_VERSIONS: Final = ConfigDict(frozen=True, extra="ignore")
"""What another version adds is passed over: to be read by another version is what these are for."""


class Spoken(BaseModel):
    """What one side speaks.

    Attributes:
        version: Of the package.
        messages: Protocol of requests and replies.
        offers: Protocol of offered plans.
        plans: Version of the plan.
    """

    model_config = _ACROSS_VERSIONS

    version: str = Field(max_length=100)
    messages: int
    offers: int
    plans: int

    def differences(self, other: Spoken) -> tuple[str, ...]:
        """Protocols in which the two differ: over any of them they do not understand each other."""
        return tuple(
            f"{name} {getattr(self, name)} and {getattr(other, name)}"
            for name in ("messages", "offers", "plans")
            if getattr(self, name) != getattr(other, name)
        )


class ServerAbout(BaseModel):
    """The server's answer.

    Attributes:
        spoken: What it speaks.
        roster: Version of its roster.
        transport: The transport key that it knows of who asks, as rosters write it.
        admitted: Whether a node with that key is let in at the door.
    """

    model_config = _ACROSS_VERSIONS

    spoken: Spoken
    roster: int = Field(ge=1)
    transport: str = Field(max_length=200)
    admitted: bool


def ours() -> Spoken:
    """What this installation speaks."""
    return Spoken(
        version=__version__, messages=flower_codec.PROTOCOL, offers=offer_codec.PROTOCOL, plans=PLAN_VERSION
    )
