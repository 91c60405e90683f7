"""Plain text: `{"text": …}`; every token is under loss, the end token included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.training.text_formats.contract import Completion, Conversation, Wording, text_fault


class Text:
    """Continued pretraining. Without a begin token the first token is no target: nothing precedes it."""

    roles: dict[str, bool] = {"text": True}  # noqa: RUF012 - protocol attribute, never written
    answer_role: str | None = None
    needs_chat_template = False
    asks = False

    def fault(self, roles: Mapping[str, Any], *, answered: bool = True) -> str | None:
        """It has to be text."""
        del answered
        return text_fault(roles, self.roles)

    def write(self, roles: Mapping[str, Any], wording: Wording) -> Conversation | Completion:
        """A completion without a prompt. A chat template or a system prompt plays no part."""
        del wording
        return Completion("", roles["text"])


FORMAT = Text()
