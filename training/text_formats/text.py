"""Plain text: `{"text": …}`; every token is under loss, the end token included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.training.text_formats.contract import Completion, Conversation, Wording, not_text


class Text:
    """Continued pretraining. The first token is never a target: nothing precedes it, unless the tokenizer
    opens with a begin token.
    """

    roles: dict[str, bool] = {"text": True}  # noqa: RUF012 - protocol attribute, never written
    answer_role: str | None = None
    needs_chat_template = False

    def fault(self, roles: Mapping[str, Any], *, answered: bool = True) -> str | None:
        """It has to be text."""
        del answered
        return not_text(roles, ("text",))

    def write(self, roles: Mapping[str, Any], wording: Wording) -> Conversation | Completion:
        """A completion without a prompt. A chat template or a system prompt plays no part."""
        del wording
        return Completion("", roles["text"])


FORMAT = Text()
