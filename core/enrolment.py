"""What a consortium signs before anybody trains: the plan, and how many have to accept it before round 1."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Final

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen, invalid
from wardround.core.plan import TrainingPlan

DAY_S: Final = 86_400.0
LONGEST_OFFER_S: Final = 366 * DAY_S
"""An offer that stands longer is one that somebody forgot."""

UNREADY: Final[Mapping[str, str]] = {
    "adapter": "its adapter on this base model is another than the plan's",
    "broken_rows": "most of its rows cannot be used",
    "columns": "its rows have not the columns that the plan reads",
    "declined": "a person there has declined the plan",
    "labels": "its rows have labels that are not in the plan's list",
    "machine": "its machine cannot do what its settings ask for",
    "method": "its version of Wardround lacks something that the plan names",
    "model_absent": "it has not the plan's base model",
    "model_differs": "the weights of its base model are not the plan's",
    "not_enough_rows": "it has not enough rows for the plan",
    "policy": "its own policy does not allow the plan",
    "privacy": "the plan's differential privacy cannot be kept with its rows",
    "rows": "its rows cannot be read",
    "settings": "its settings are not as they should be",
    "tokenizer": "the tokenizer of its base model is not the plan's",
    "too_many_rows": "it has more rows than the plan allows a site",
}
"""Why a site cannot train a plan: all that it tells of that. No code says anything about a single row."""


class EnrolmentRules(Frozen):
    """When round 1 begins: sites accept an offered plan, and people may take days to approve it."""

    least_sites: int = Field(ge=1)
    """So many sites have to accept the plan; below it no round begins."""
    offer_expires_s: float = Field(default=7 * DAY_S, gt=0, le=LONGEST_OFFER_S)
    """Seconds from the offer on after which nobody can accept it any more."""
    grace_s: float = Field(default=60.0, ge=0, le=LONGEST_OFFER_S)
    """Seconds that a round still waits for the others once its quorum has answered."""


class SignedPlan(Frozen):
    """The document that a consortium signs as its plan. Equal documents have equal digests everywhere."""

    plan: TrainingPlan
    enrolment: EnrolmentRules

    def canonical(self) -> bytes:
        """Sorted, compact JSON, the plan in its own canonical form: what is digested and signed.

        Raises:
            ConfigError: As `TrainingPlan.canonical`.
        """
        rules = self.enrolment.model_dump(mode="json")
        fields = {"plan": json.loads(self.plan.canonical()), "enrolment": rules}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical()`, in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @staticmethod
    def parse(text: str | bytes) -> SignedPlan:
        """Read the document from its JSON.

        Raises:
            ConfigError: Not JSON, an unknown key, a wrong type; names the place, never a value.
        """
        try:
            return SignedPlan.model_validate_json(text)
        except ValidationError as error:
            raise invalid("signed plan", error) from error
