"""What of a plan says how small a contribution travels, where somebody sees it by itself."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from wardround.core.checked import Frozen


class Blocks(Frozen):
    """Few bits a coordinate, in blocks that each have a scale; rounded at random, so that no mean moves."""

    method: Literal["blocks"] = "blocks"
    bits: Literal[4, 8] = 8
    """Of a coordinate; a block adds 32 for its scale."""
    block: int = Field(default=64, ge=2, le=65536)
    """Coordinates that share a scale: short blocks lose less, and their scales weigh more."""


class TopK(Frozen):
    """The largest coordinates alone; what is not sent waits at the site, and is added to the next update."""

    method: Literal["top_k"] = "top_k"
    share: float = Field(default=0.01, gt=0, le=1)
    """Of the coordinates that travel: one at least."""
    bits: Literal[8, 16, 32] = 16
    """Of each value; its place takes about 2 + log2(1 / share) more."""


Compression: TypeAlias = Annotated[Blocks | TopK, Field(discriminator="method")]


def keeps_a_rest(compression: Blocks | TopK | None) -> bool:
    """Whether a site keeps what it has not sent."""
    return isinstance(compression, TopK)


def described(compression: Blocks | TopK | None) -> str:
    """In a few words, for people; empty where nothing is compressed."""
    match compression:
        case None:
            return ""
        case Blocks():
            return f"{compression.bits} bits a coordinate, in blocks of {compression.block} with a scale each"
        case TopK():
            return f"the largest {compression.share:.3%} of the coordinates, {compression.bits} bits each"
