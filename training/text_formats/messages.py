"""Conversations, `{"messages": [{"role": …, "content": …}, …]}`, through the tokenizer's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wardround.training.text_formats.contract import ASSISTANT, Completion, Conversation, Message, Wording


class Messages:
    """Loss on every assistant turn. A table's text column may hold the list as JSON."""

    roles: dict[str, bool] = {"messages": True}  # noqa: RUF012 - protocol attribute, never written
    answer_role: str | None = None
    needs_chat_template = True
    asks = True

    def fault(self, roles: Mapping[str, Any], *, answered: bool = True) -> str | None:
        """A list of role and content, both text, with an assistant turn in it where one is to be learnt.

        What a turn asks of tools is not part of its content: learnt without it, the turn would be silence.
        """
        turns = _turns(roles.get("messages"))
        if not turns:
            return "not_messages"
        if any(turn.get("tool_calls") for turn in _listed(roles.get("messages"))):
            return "tool_calls"
        if answered and not any(turn.role == ASSISTANT for turn in turns):
            return "no_assistant_turn"
        return None

    def write(self, roles: Mapping[str, Any], wording: Wording) -> Conversation | Completion:
        """The turns, with the plan's system prompt in front where they bring none."""
        turns = _turns(roles.get("messages")) or ()
        if wording.system and not any(turn.role == "system" for turn in turns):
            turns = (Message("system", wording.system), *turns)
        return Conversation(turns)


def _listed(value: Any) -> Sequence[Any]:
    """The list as it stands, or as JSON; empty where the value is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    return value if isinstance(value, (list, tuple)) else ()


def _turns(value: Any) -> tuple[Message, ...] | None:
    """The turns, or None where the value is no list of role and content."""
    turns = []
    for turn in _listed(value):
        if not isinstance(turn, Mapping):
            return None
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        turns.append(Message(role, content))
    return tuple(turns) or None


FORMAT = Messages()
