"""What a plan would take of this machine: a measured step in, findings out."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from wardround.client.doctor.findings import Finding, fails, passes, unseen, warns
from wardround.core.checked import Frozen
from wardround.runtime.sizes import size_text

SHARE_OF_MEMORY: Final = 0.85
"""Of what is free that a step may take before it is worth a word: other things live on the machine."""
SHARE_OF_DEADLINE: Final = 0.5
"""Of a round's deadline that training may take before it is worth a word."""
LESS: Final = (
    "set machine.microbatch_size lower (the logical batch stays) or machine.gradient_checkpointing: true in "
    "site.yaml, or take a larger machine"
)


class FoundModel(Frozen):
    """One entry of `models`, held against a plan.

    Attributes:
        path: As site.yaml has it.
        state: `plans`: it is the plan's; `other`: its digest in site.yaml says that it is another plan's,
            and it was not loaded; `wrong`: its digest in site.yaml is the plan's, and its weights are not;
            `differs`: it is another one; `absent`: there is nothing to load; `unfit`: this machine or this
            plan cannot use it.
        found: What was there.
        remedy: What to do.
    """

    path: str
    state: Literal["plans", "other", "wrong", "differs", "absent", "unfit"]
    found: str = ""
    remedy: str = ""


class Measured(Frozen):
    """One training step.

    Attributes:
        seconds: It took.
        peak_bytes: Of the process at its highest, model and all; of a CUDA device: what torch had of it.
        device: Where it ran.
        rows: Of the batch.
        tokens: Of its longest row (or what else the task counts).
        made_up: Whether the rows were made up, at the plan's full length.
        private: Whether it clipped and noised.
        at_once: Rows at once that memory took, where it did not take as many as it was given; else None.
    """

    seconds: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    device: str
    rows: int
    tokens: int
    made_up: bool
    private: bool
    at_once: int | None = None


class Tried(Frozen):
    """What came of a dry step's process.

    Attributes:
        models: Entries that were looked at before it ended.
        step: What was measured; None: it did not come so far.
        why: What ended it, where something did.
        remedy: What to do.
    """

    models: tuple[FoundModel, ...] = ()
    step: Measured | None = None
    why: str = ""
    remedy: str = ""


def judge_step(tried: Tried, free_bytes: int | None, max_length: int) -> Finding:
    """Of the step.

    Args:
        tried: What came of it.
        free_bytes: Memory of the device that was free before; None: not known.
        max_length: Tokens that the plan allows a row.
    """
    step = tried.step
    if step is None:
        if not any(model.state == "plans" for model in tried.models) and tried.models:
            return unseen("dry step", "models")
        return fails("dry step", tried.why, tried.remedy or LESS)
    told = (
        f"{step.seconds:.2f} s and {size_text(step.peak_bytes)} at the highest on {step.device}, "
        f"{step.rows} rows of {step.tokens} tokens" + (", clipped and noised" if step.private else "")
    )
    if step.at_once is not None:
        return warns("dry step", f"{told}; memory took {step.at_once} rows at once and no more", LESS)
    if free_bytes is not None and step.peak_bytes > SHARE_OF_MEMORY * free_bytes:
        return warns("dry step", f"{told}, of {size_text(free_bytes)} that were free", LESS)
    if not step.made_up and step.tokens < max_length:
        return warns(
            "dry step", f"{told}: the longest that this site has; the plan allows {max_length}",
            "look again when longer rows have come",
        )  # fmt: skip
    return passes("dry step", told)


def judge_estimate(step: Measured | None, steps: int | None, deadline_s: float) -> Finding:
    """Of a round's time and memory: every step as long as the longest one, so that rather too much is said.

    Args:
        step: What was measured.
        steps: Of one round here; None: they follow from rows that could not be read.
        deadline_s: Of the round.
    """
    if step is None:
        return unseen("estimate", "dry step")
    if steps is None:
        return unseen("estimate", "data")
    seconds = steps * step.seconds
    told = (
        f"at most about {seconds:.0f} s of training a round ({steps} steps), "
        f"{size_text(step.peak_bytes)} of memory; the deadline is {deadline_s:.0f} s"
    )
    remedy = "ask for a plan with fewer steps or a longer deadline, or take a faster machine"
    if seconds > deadline_s:
        return fails("estimate", told, remedy)
    if seconds > SHARE_OF_DEADLINE * deadline_s:
        return warns("estimate", told, remedy)
    return passes("estimate", told)
