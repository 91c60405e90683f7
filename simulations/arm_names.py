"""Names of a run's arms; imports nothing."""

from __future__ import annotations

from typing import Final

FEDERATED: Final = "federated"
CENTRALISED: Final = "centralised"
