"""What a text format is: how the roles of a row become a conversation, or a prompt with its completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns that the tokenizer's chat template renders; loss falls on the assistant's."""

    messages: tuple[Message, ...]

    def question(self) -> Conversation:
        """Without the closing assistant turn: what is to be answered."""
        if self.messages and self.messages[-1].role == ASSISTANT:
            return Conversation(self.messages[:-1])
        return self


@dataclass(frozen=True)
class Completion:
    """Prompt and completion that follow each other as they stand; loss falls on the completion."""

    prompt: str
    completion: str

    def question(self) -> Completion:
        """The prompt alone; where there is none, the text itself is to be continued."""
        return Completion(self.prompt or self.completion, "")


@dataclass(frozen=True)
class Wording:
    """What the plan says about wording.

    Attributes:
        chat: Whether the tokenizer's chat template is used.
        system: System prompt, put in front where a row brings none.
        instruction_template: For formats that build a prompt from several roles.
    """

    chat: bool
    system: str | None = None
    instruction_template: str | None = None


class TextFormat(Protocol):
    """One format. Stateless."""

    roles: dict[str, bool]
    """Role → whether it has to be mapped for training."""
    answer_role: str | None
    """Role that a prediction does without."""
    needs_chat_template: bool
    """Whether the format cannot be written without one."""
    asks: bool
    """Whether a row holds a question, so that generated answers can be scored."""

    def fault(self, roles: Mapping[str, Any], *, answered: bool = True) -> str | None:
        """Code of what is wrong with a row's roles, or None. The code holds nothing of the row.

        `answered` is False where a prediction is asked for, so that the answer may be missing.
        """

    def write(self, roles: Mapping[str, Any], wording: Wording) -> Conversation | Completion:
        """The text of a row without fault; a missing answer counts as empty."""


def as_written(system: str | None, prompt: str, completion: str, *, chat: bool) -> Conversation | Completion:
    """One question with its answer, as chat turns or as plain text with the system prompt on top."""
    if chat:
        head = (Message("system", system),) if system else ()
        return Conversation((*head, Message("user", prompt), Message(ASSISTANT, completion)))
    return Completion(f"{system}\n\n{prompt}" if system else prompt, completion)


def text_fault(roles: Mapping[str, Any], needed: Mapping[str, bool]) -> str | None:
    """Code naming the first role that is no text, or that is missing although it is needed.

    An empty text is a text: a source decides by its own rules what an empty cell means.
    """
    for name, required in needed.items():
        value = roles.get(name)
        if value is None and required:
            return f"empty:{name}"
        if value is not None and not isinstance(value, str):
            return f"not_text:{name}"
    return None
