"""Prompt and completion: `{"prompt": …, "completion": …}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.training.text_formats.contract import Completion, Conversation, Wording, as_written, text_fault


class PromptCompletion:
    """Loss on the completion and the end token. Without a chat template nothing is put between the two."""

    roles: dict[str, bool] = {"prompt": True, "completion": True}  # noqa: RUF012 - protocol attribute, never written
    answer_role: str | None = "completion"
    needs_chat_template = False
    asks = True

    def fault(self, roles: Mapping[str, Any], *, answered: bool = True) -> str | None:
        """Both have to be text; a prediction does without the completion."""
        return text_fault(roles, {**self.roles, "completion": answered})

    def write(self, roles: Mapping[str, Any], wording: Wording) -> Conversation | Completion:
        """One user turn and one assistant turn, or the two texts as they stand."""
        return as_written(wording.system, roles["prompt"], roles.get("completion") or "", chat=wording.chat)


FORMAT = PromptCompletion()
