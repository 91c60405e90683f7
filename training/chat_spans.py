"""Renders a conversation through a chat template and finds the characters that the assistant wrote.

A template with `{% generation %}` tags says it itself. For any other the span of a turn is what rendering
one turn more adds to the text, past the header that the template's own generation prompt writes. That holds
only for templates that render earlier turns the same way whatever follows, which is checked.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from wardround.core.errors import ModelError
from wardround.training.text_formats.contract import ASSISTANT, Conversation, Message

_STAND_INS = ("\ufffc", "\ufffd")
"""Characters with which no template begins what follows a content."""

_USUAL_ROLES = ("system", "user", ASSISTANT, "tool")

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Written:
    """A text and the character ranges [start, end) under loss, in order.

    Attributes:
        complete: Whether the last range reaches the end of the text, so that an end token may follow.
        special: Whether the tokenizer's own begin token is to be added in front (a chat template writes it).
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    complete: bool
    special: bool


def render_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, ask: bool = False) -> str:
    """The conversation as text; `ask` adds the header of the assistant's next turn.

    Raises:
        ModelError: There is no chat template, or it refuses these turns (roles that must alternate, no
            system turn). The message holds none of the text.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
    require_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, TypeError, ValueError) as error:
        raise _refused(conversation, error) from None
    return cast("str", text)


def write_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Written:
    """The rendered conversation and the spans of its assistant turns.

    Raises:
        ModelError: As `render_chat`; or the spans cannot be told from the rendering.
    """
    template = require_template(tokenizer)
    if _GENERATION_TAG.search(template):
        text, spans = _tagged_spans(conversation, tokenizer, template)
    else:
        text = render_chat(conversation, tokenizer)
        spans = _prefix_spans(conversation, tokenizer, text)
    complete = bool(conversation.messages) and conversation.messages[-1].role == ASSISTANT
    return Written(text, spans, complete=complete, special=False)


def require_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template.

    Raises:
        ModelError: It has none.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            expected="a chat_template.jinja beside the model, for a task with conversations",
            remedy="use an instruction-tuned model, or task.options.use_chat_template=false",
        )
    return tokenizer.get_chat_template()


def _tagged_spans(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[str, tuple[tuple[int, int], ...]]:
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
    specials: dict[str, Any] = dict(tokenizer.special_tokens_map)
    try:
        # What apply_chat_template calls. Its own token mask stops at the first span that opens with a
        # character no token covers (transformers 5.23), so the ranges are mapped to tokens by us.
        result: Any = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **specials,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise _refused(conversation, error) from None
    # Annotated as text; with the mask asked for it is the texts and a list of (start, end) for each.
    rendered, ranges = result
    spans = tuple((int(start), int(end)) for start, end in ranges[0])
    if not spans and any(turn.role == ASSISTANT for turn in conversation.messages):
        raise ModelError(
            "the chat template has generation tags, but none around an assistant turn",
            remedy="put {% generation %} … {% endgeneration %} around what the assistant writes",
        )
    return str(rendered[0]), spans


def _prefix_spans(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[tuple[int, int], ...]:
    """Spans by rendering the conversation turn by turn.

    Header: the rendering up to the turn with the generation prompt, which must be a prefix of the whole.
    End: where the rendering that stops after the turn and the whole part; some templates close a text with a
    token of its own, so the ranges are cut back to whole tokens later (see `tokens_under_loss`).
    """
    turns = conversation.messages
    spans: list[tuple[int, int]] = []
    for index, turn in enumerate(turns):
        if turn.role != ASSISTANT:
            continue
        start = _header_end(turns, index, text, tokenizer)
        upto = text if index + 1 == len(turns) else render_chat(Conversation(turns[: index + 1]), tokenizer)
        end = _common_length(upto, text)
        if end < len(upto):
            end = _last_token_end(text, end, tokenizer)
        if end < start or turn.content.strip() not in text[start:end]:
            raise _no_prefix(index)
        spans.append((start, end))
    return tuple(spans)


def _header_end(turns: tuple[Message, ...], index: int, text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    if index == 0:
        # Nothing can be rendered before the first turn: templates refuse an empty conversation. The header is
        # what stays where the turn says something else; to look for the content would find it in the header.
        other = next(word for word in _STAND_INS if not turns[0].content.strip().startswith(word))
        stand_in = (dataclasses.replace(turns[0], content=other), *turns[1:])
        return _common_length(render_chat(Conversation(stand_in), tokenizer), text)
    header = render_chat(Conversation(turns[:index]), tokenizer, ask=True)
    if not text.startswith(header):
        raise _no_prefix(index)
    return len(header)


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _last_token_end(text: str, end: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """The last place at or before `end` where a token of the text stops."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return max((int(stop) for _, stop in offsets if stop <= end), default=0)


def _no_prefix(index: int) -> ModelError:
    return ModelError(
        "cannot tell which characters of a rendered conversation the assistant wrote",
        found=f"a chat template without generation tags that renders the turns before number {index + 1} "
        "differently from the whole",
        expected="earlier turns rendered the same way whatever follows",
        remedy="put {% generation %} … {% endgeneration %} around what the assistant writes in the template",
    )


def _refused(conversation: Conversation, error: Exception) -> ModelError:
    # A role is a cell of the data: only the usual ones are named.
    roles = [turn.role for turn in conversation.messages if turn.role in _USUAL_ROLES]
    unknown = len(conversation.messages) - len(roles)
    return ModelError(
        "the chat template refuses a conversation",
        found=f"{type(error).__name__} on {len(conversation.messages)} turns: {len(roles)} of the roles "
        f"{', '.join(sorted(set(roles))) or 'below'}, {unknown} of others",
        expected=f"roles among {', '.join(_USUAL_ROLES)}, as far as the template knows them",
        remedy="many templates want user and assistant to alternate, and some take no system turn",
    )
