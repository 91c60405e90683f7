"""What a worker's process serves: an app, and what it does while nobody asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that a worker's process says what is wrong with its settings before it loads anything
    from flwr.clientapp import ClientApp


@dataclass(frozen=True)
class Resident:
    """An app with an idle side.

    Attributes:
        app: Answers messages.
        idle: Is told, between messages and in the same thread, for how many seconds there was none.
    """

    app: ClientApp
    idle: Callable[[float], None]
