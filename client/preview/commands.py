"""`wardround site preview`: what would leave this site in a run of a plan, for those who may refuse it."""

from __future__ import annotations

import json
import math
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from wardround.client.membership.site_folder import open_site_folder
from wardround.client.offered_plans import named_plan
from wardround.client.preview.fields import CLAIMS, CODES, FIELDS, what_is
from wardround.client.preview.preview import Outgoing, Preview, as_record, preview_of
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.packed import Layout
from wardround.runtime.sizes import size_text
from wardround.training.plan_summary import privacy_line, summary_of

NOT_COUNTED: Final = (
    "not counted: HTTP, TLS and what is sent again on a lost line; heartbeats and looks for a message, which "
    "hold nothing; offers that wait and attempts that fail, which are answered again"
)


def show_preview(folder: Path, plan: str, *, as_json: bool, fields: bool) -> None:
    """Print what would leave.

    Args:
        folder: Of the site.
        plan: A plan's folder, the file of a signed plan, or the id of a run that was offered.
        as_json: All of it as JSON.
        fields: Every field of every message as well.

    Raises:
        ConfigError: There is no such plan, or it is not sound.
        PeerError: It is not signed by the consortium.
        StorageError: The folder is no site's, or something cannot be read.
    """
    site = open_site_folder(folder)
    document = named_plan(site, plan)
    members = sorted({member.site for member in site.roster().members} | {site.name})
    figures = read_site_settings(site.path / FILE).plans.figures
    preview = preview_of(document, site.name, members, figures)
    summary = summary_of(document, len(members))
    rules = document.plan.privacy
    private = rules is not None and rules.trains_privately
    if as_json:
        record = as_record(preview) | {"site": site.name, "plan": summary}
        if fields:
            record |= {"fields": {name: dict(of_message) for name, of_message in FIELDS.items()}}
        if fields and private:
            record |= {
                "claims": {name: dict(of_message) for name, of_message in CLAIMS.items()},
                "codes": {code: claim for code, (claim, _) in CODES.items()},
            }
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
        return
    where = f"{len(members)} members, of whom {summary['cohort']} train in a round; {preview.rounds} rounds"
    lines = [
        f"plan {summary['name']}, digest {summary['digest']}",
        f"what would leave {site.name} with {where}, as if it were asked in each and nothing failed",
        "",
        *messages_text(preview),
        "",
        *contents_text(preview),
        f"privacy: {privacy_line(summary)}",
        *(["", *fields_text(private=private)] if fields else []),
    ]
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def messages_text(preview: Preview) -> list[str]:
    """One line a message, by kind of round; then totals."""
    lines = []
    for when, group in groupby(preview.messages, key=lambda message: message.when):
        messages = list(group)
        size, count = sum(message.bytes for message in messages), messages[0].count
        times = f", {count} times" if count > 1 else ""
        lines.append(f"{when}{times}: {_counted(len(messages))}, {size_text(size)}")
        lines += [_message_line(message) for message in messages if message.exchange is not None]
    total = f"{_counted(preview.count)}, {size_text(preview.bytes_up)} ({preview.bytes_up:,} bytes)"
    return [
        *lines,
        f"in all: {total}; down come {size_text(preview.bytes_down)} of states and sums",
        NOT_COUNTED,
    ]


def contents_text(preview: Preview) -> list[str]:
    """What the sums hold, and what stands beside them."""
    hidden = {
        "real": "under masks: the server learns the sum over the survivors alone",
        "trusted": "encrypted to the trusted aggregator, who sees each",
        "off": "in the clear: the server sees this site's own",
        "accounted": "in the clear, in spite of the phases: nothing is hidden",
    }[preview.mode]
    lines = [f"the training sum and the counters travel {hidden}"]
    for stage, layout in enumerate(preview.training):
        name = "training sum" if len(preview.training) == 1 else f"training sum, stage {stage}"
        form = preview.compression or f"integers of {preview.bits} bits"
        lines.append(f"{name}: {layout.size:,} float32 as {form}")
        lines += _tensor_lines(layout)
    lines.append("counters beside it, 64 bits each:")
    lines += [f"  {spec.name}: {what_is('counters', spec.name)}" for spec in preview.counters.tensors]
    if preview.metrics.size:
        lines.append(f"numerators of the scores, {preview.metrics.size} of 64 bits:")
        lines += _tensor_lines(preview.metrics)
    figures = dict.fromkeys(name for message in preview.messages for name in message.figures)
    lines.append("figures of this site's own, which the server sees as they are:")
    return lines + [f"  {name}: {what_is('local', name)}" for name in figures]


def fields_text(*, private: bool) -> list[str]:
    """Every field of every message; where the site trains privately, with its class and that of each code."""
    lines = []
    for message, fields in FIELDS.items():
        lines.append(f"{message}:")
        for name, what in fields.items():
            claim = f" [{CLAIMS[message][name]}]" if private else ""
            lines.append(f"  {name}: {what}{claim}")
    if private:
        lines.append("codes of a reply:")
        lines += [f"  {code}: {why} [{claim}]" for code, (claim, why) in CODES.items() if code]
    return lines


def _message_line(message: Outgoing) -> str:
    phases = dict.fromkeys(message.parts.values())
    said = ", ".join(f"{phase} ({' and '.join(_sums(message, phase))})" for phase in phases)
    assert message.exchange is not None  # noqa: S101 - the caller looked
    return f"  {message.exchange + 1}. {said}: {size_text(message.bytes)}"


def _counted(messages: int) -> str:
    return "1 message" if messages == 1 else f"{messages} messages"


def _sums(message: Outgoing, phase: str) -> list[str]:
    return [name for name, of_sum in message.parts.items() if of_sum == phase]


def _tensor_lines(layout: Layout) -> list[str]:
    return [f"  {spec.name} {_shape(spec.shape)}" for spec in layout.tensors]


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) + f" = {math.prod(shape):,}" if shape else "1"
