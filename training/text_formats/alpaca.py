"""Alpaca's instruction, optional input, output (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.training.text_formats.contract import Completion, Conversation, Wording, as_written, text_fault

PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
PLAIN_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)


class Alpaca:
    """The published prompts where there is no chat template; instruction, blank line, input where there is.

    A plan's `instruction_template` with `{instruction}` and `{input}` replaces either.
    """

    roles: dict[str, bool] = {"instruction": True, "input": False, "output": True}  # noqa: RUF012 - protocol attribute, never written
    answer_role: str | None = "output"
    needs_chat_template = False
    asks = True

    def fault(self, roles: Mapping[str, Any], *, answered: bool = True) -> str | None:
        """All have to be text; a prediction does without the output."""
        return text_fault(roles, {**self.roles, "output": answered})

    def write(self, roles: Mapping[str, Any], wording: Wording) -> Conversation | Completion:
        """The instruction's prompt with the output as its answer."""
        given = str(roles.get("input") or "")
        template = wording.instruction_template
        if template is None and wording.chat:
            template = "{instruction}\n\n{input}" if given.strip() else "{instruction}"
        elif template is None:
            template = PLAIN_WITH_INPUT if given.strip() else PLAIN
        prompt = fill(template, {"instruction": roles["instruction"], "input": given})
        return as_written(wording.system, prompt, roles.get("output") or "", chat=wording.chat)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into a template whose fields were checked; braces inside the values mean nothing."""
    return template.format_map(values)


FORMAT = Alpaca()
