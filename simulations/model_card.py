"""The model card: `README.md` of a result folder, in Hugging Face's form.

It says what was trained on what and what that is not good for; every figure comes from the run's summary.
It is made to be published: no row's text or id and no folder of this machine stands in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from wardround.core.plan import BaseModelSpec, Schedule, TrainingPlan
from wardround.simulations.arm_names import CENTRALISED, FEDERATED
from wardround.simulations.comparison import BEFORE, EVERYBODY, local_site, site_of, support_unit
from wardround.simulations.finished_run import own_folder
from wardround.simulations.markdown import markdown_table, one_line, options_text
from wardround.simulations.secure_costs import privacy_section

LONGEST_ANSWER = 600
MOST_SOURCES = 10

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Test:
    """Scores of one arm on one part."""

    values: Figures = field(default_factory=dict)
    support: Mapping[str, int] = field(default_factory=dict)
    by_class: Mapping[str, Figures] = field(default_factory=dict)

    __test__ = False  # the name is no test class


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card says.

    Attributes:
        plan: What was trained.
        task: What the task says of itself: `auto_class`, `reads_tokens`, `pipeline_tag`, `caution`.
        site_rows: Site → its training rows, validation part included; a simulation knows them.
        released_round: Round whose adapter lies in `adapter/`.
        last_round: Rounds that were folded.
        reason: `completed` or `early_stop`.
        validation: Round → validation score in the metric that chose the released round.
        adapter_digest: SHA-256 of the released adapter; empty where each site has its own.
        own: Site → SHA-256 of its own adapter, in that case.
        test: Arm → scores on everybody's test rows.
        site_tests: Arm (`before training` as well) → site → scores on that site's own test rows.
        comparison: How it was trained → metrics on everybody's test rows, in the order to show.
        test_rows: Site → its own test rows.
        data: What `data_record` says of the rows: description, licence, sources, meanings of the labels.
        privacy: What `privacy_record` says of the differential privacy.
        secure: What `secure_record` says of the sums.
        notices: What happened to the data, a line each.
        samples: A few answers to test rows, without ids.
        environment: Package → version.
    """

    plan: TrainingPlan
    task: Mapping[str, str]
    site_rows: Mapping[str, int]
    released_round: int
    last_round: int
    reason: str = "completed"
    validation: Mapping[int, float] = field(default_factory=dict)
    adapter_digest: str = ""
    own: Mapping[str, str] = field(default_factory=dict)
    test: Mapping[str, Test] = field(default_factory=dict)
    site_tests: Mapping[str, Mapping[str, Test]] = field(default_factory=dict)
    comparison: Mapping[str, Figures] = field(default_factory=dict)
    test_rows: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=lambda: {"differential_privacy": "none"})
    secure: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def card_of(plan: TrainingPlan, summary: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card of a finished run, from its plan and its `summary.json`."""
    arms = summary["arms"]
    federated = arms[FEDERATED]
    test: dict[str, Test] = {}
    site_tests: dict[str, dict[str, Test]] = {}
    scored = {BEFORE: summary["before_training"]} | {arm: record["test"] for arm, record in arms.items()}
    for arm, parts in scored.items():
        for part, scores in parts.items():
            found, site = Test(scores["values"], scores["support"], scores["by_class"]), site_of(part)
            if part == EVERYBODY:
                test[arm] = found
            elif site is not None:
                site_tests.setdefault(arm, {})[site] = found
    return model_card(
        CardFacts(
            plan=plan,
            task=summary["task"],
            site_rows=summary["sites"],
            released_round=federated["released_round"],
            last_round=federated["last_round"],
            reason=federated["reason"],
            validation={int(round): value for round, value in federated["validation"]},
            adapter_digest=federated.get("released_adapter", ""),
            own=federated.get("site_adapters", {}),
            test=test,
            site_tests=site_tests,
            comparison=summary["comparison"],
            test_rows=summary["test_rows"]["sites"],
            data=summary["data"],
            privacy=summary["privacy"],
            secure=summary["secure"],
            notices=summary["notices"],
            samples=samples,
            environment=summary["environment"],
        )
    )


def model_card(facts: CardFacts) -> str:
    """Render the card: Markdown with YAML front matter, ending in a newline."""
    sections = [
        _front_matter(facts), _opening(facts), _data(facts), _training(facts), _sites(facts), _results(facts),
        _released(facts), _answers(facts), privacy_section(facts.privacy, facts.secure), _limits(facts),
        _loading(facts),
        _provenance(facts),
    ]  # fmt: skip
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def _front_matter(facts: CardFacts) -> str:
    plan = facts.plan
    values: dict[str, Any] = {
        "base_model": plan.base.name,
        "library_name": "peft",
        "pipeline_tag": facts.task["pipeline_tag"],
        "tags": [plan.adapter.method, "federated-learning", "medical", "wardround"],
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{text}# license: yours to choose, as far as the base model's and the data's allow\n---"


def _opening(facts: CardFacts) -> str:
    plan = facts.plan
    rows = sum(facts.site_rows.values())
    what = f"A {plan.adapter.method} adapter"
    if facts.own:
        what = f"**One {plan.adapter.method} adapter a site, and none for everybody,**"
    return (
        f"# {one_line(plan.name)}\n\n"
        f"{what} for `{plan.base.name}`, fine-tuned with Wardround in a **simulated "
        f"federation** of {_count(len(facts.site_rows), 'site')} ({_count(rows, 'row')}). "
        f"Research only: **not a medical device**."
    )


def _data(facts: CardFacts) -> str:
    data, labels, meanings = facts.data, facts.plan.data.labels, facts.data.get("label_meanings", {})
    named = [f"{label}: {meanings[label]}" if label in meanings else label for label in labels]
    training, test = (_sources(data.get(key, ())) for key in ("training_sources", "test_sources"))
    lines = [
        str(data.get("description") or ""),
        f"Licence of the rows: {data['licence']}" if data.get("licence") else "",
        f"Trained on: {training}." if training else "",
        f"Tested on: {test}." if test else "",
        f"Labels: {'; '.join(named)}." if labels else "",
    ]
    unsaid = "" if data.get("licence") else "The licence of the rows was not given."
    return "## The rows\n\n" + "\n\n".join(one_line(line) for line in [*lines, unsaid] if line)


def _sources(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - MOST_SOURCES} more" if len(shown) > MOST_SOURCES else ""
    return ", ".join(f"`{name}`" for name in shown[:MOST_SOURCES]) + more


def _training(facts: CardFacts) -> str:
    plan = facts.plan
    local = plan.local
    amount = (
        f"{local.epochs:g} passes over its rows"
        if local.epochs is not None
        else _count(local.steps or 0, "step")
    )
    data = plan.data
    entries = {
        "task": plan.task.name,
        "labels": ", ".join(data.labels),
        "columns": ", ".join(f"{role}: {column}" for role, column in data.columns.items()),
        "template": " / ".join(data.template.segments) if data.template else "",
        "longest text": f"{data.max_length} tokens",
        "base model": _weights(plan.base),
        "adapter": f"{plan.adapter.method}, {options_text(plan.adapter.options)}",
        "trained parameters": f"{plan.adapter.layout.size:,}",
        "local work a round": f"{amount}, batches of {local.batch_size}",
        "local optimiser": f"{local.optimiser}, rate {local.learning_rate:g}",
        "learning rate": _schedule(local.schedule),
        "strategy": f"{plan.strategy.name}, {options_text(plan.strategy.options)}",
        "weight of a site": plan.strategy.weighting,
        "rounds": f"{facts.last_round} of {plan.rounds.rounds}",
        "sites in a round": f"{plan.rounds.participation:.0%}",
    }
    return "## What was trained\n\n" + markdown_table(
        ("", ""), [(key, text) for key, text in entries.items() if text]
    )


def _weights(base: BaseModelSpec) -> str:
    kept = "not quantised" if base.quantisation == "none" else f"quantised to {base.quantisation}"
    return f"{base.dtype}, {kept}" + (", its own dropout off" if base.dropout == "off" else "")


def _schedule(schedule: Schedule) -> str:
    parts = [schedule.shape, f"over the {schedule.scope}"]
    if schedule.warmup:
        parts.append(f"the first {schedule.warmup:.0%} rising from zero")
    if schedule.floor:
        parts.append(f"down to {schedule.floor:.0%} of the peak")
    return ", ".join(parts)


def _sites(facts: CardFacts) -> str:
    metric = facts.plan.release.metric
    local: dict[str, Test] = {}
    for arm, tests in facts.site_tests.items():
        if local_site(arm) is not None:
            local |= tests
    columns = {
        BEFORE: facts.site_tests.get(BEFORE, {}),
        "federated": facts.site_tests.get(FEDERATED, {}),
        "local-only": local,
        "centralised": facts.site_tests.get(CENTRALISED, {}),
    }
    shown = {name: tests for name, tests in columns.items() if tests}
    held = f", {facts.plan.data.validation_fraction:.0%} of them held back to choose the released round"
    lines = [
        (
            site, f"{rows:,}",
            *(_value(tests.get(site, Test()), metric) for tests in shown.values()),
            *((f"{facts.test_rows.get(site, 0):,}",) if shown else ()),
        )
        for site, rows in facts.site_rows.items()
    ]  # fmt: skip
    head = (
        "site",
        "training rows",
        *(f"{name}: {metric}" for name in shown),
        *(("test rows",) if shown else ()),
    )
    scored = f" Scores are {metric} on each site's own test rows." if shown else ""
    notices = "".join(f"\n- {one_line(notice)}" for notice in facts.notices)
    return (
        f"## Sites\n\nTraining rows{held}.{scored}\n\n{markdown_table(head, lines)}"
        + (f"\n\nTo know:\n{notices}" if notices else "")
    )  # fmt: skip


def _results(facts: CardFacts) -> str:
    federated = facts.test.get(FEDERATED)
    if federated is None:
        return "## Results\n\nNo test rows were given: nothing here says how good the model is."
    names, family = list(federated.values), facts.plan.task.metrics
    which = "the sites' own adapters" if facts.own else "this adapter"
    shown = {
        BEFORE: "before training (initial adapter)",
        FEDERATED: "federated (the sites' own adapters, together)"
        if facts.own
        else "federated (this adapter)",
        CENTRALISED: "centralised, as many steps",
    }
    rows = [
        (shown.get(arm, arm), *(_number(values.get(name)) for name in names))
        for arm, values in facts.comparison.items()
    ]
    support = (f"{federated.support.get(name, 0):,} {support_unit(family, name)}".rstrip() for name in names)
    rows.append(("support", *support))
    text = "## Results on everybody's test rows\n\n" + markdown_table(("", *names), rows)
    if federated.by_class:
        figures = list(dict.fromkeys(name for values in federated.by_class.values() for name in values))
        lines = [
            (label, *(_number(values.get(name), whole=name == "support") for name in figures))
            for label, values in federated.by_class.items()
        ]
        text += f"\n\nBy class, {which}:\n\n" + markdown_table(("class", *figures), lines)
    return text


def _released(facts: CardFacts) -> str:
    rule = facts.plan.release
    ended = "It stopped early" if facts.reason == "early_stop" else "The run went to its end"
    best = facts.validation.get(facts.released_round)
    if facts.own:
        why = (
            "It is the last one: each site keeps its own part of the adapter, and of no earlier round. In "
            f"`{own_folder('NAME')}/` is a site's whole adapter; what the sites share is no model by itself."
        )
    elif best is None:
        why = "It is the last one: nothing was scored on validation rows."
    else:
        better = "highest" if rule.direction == "max" else "lowest"
        why = f"Chosen by {rule.metric} on the sites' validation rows, the {better} wins: {_number(best)}."
        if facts.released_round == 0:
            why += " **That is the adapter that the run began with: no round was better.**"
        last = facts.validation.get(facts.last_round)
        if last is not None and facts.last_round != facts.released_round:
            why += f" The last round had {_number(last)}; its adapter is in `adapter_last/`."
    return (
        f"## Released round\n\nRound {facts.released_round}. {why} {ended}, after "
        f"{_count(facts.last_round, 'round')}. Test rows took no part in the choice."
    )


def _answers(facts: CardFacts) -> str:
    blocks = []
    for sample in facts.samples:
        lines = (f"{key}: {one_line(str(value))[:LONGEST_ANSWER]}" for key, value in sample.items())
        blocks.append("\n".join("    " + line for line in lines))
    if not blocks:
        return ""
    return "## Sample answers\n\nTo the first test rows, as they came:\n\n" + "\n\n---\n\n".join(blocks)


def _limits(facts: CardFacts) -> str:
    sentences = (
        "Not a medical device, and not validated clinically.",
        "No diagnosis, triage or treatment may rest on it.",
        facts.task["caution"],
        "Scores hold for rows like the test rows.",
        "Another hospital, time or way of writing can differ, as the sites above differ from each other.",
        "Groups of patients were not looked at separately.",
    )
    return "## Limits\n\n" + " ".join(sentences)


def _loading(facts: CardFacts) -> str:
    plan, labels = facts.plan, facts.plan.data.labels
    kind = facts.task["auto_class"]
    place = own_folder("NAME") if facts.own else "adapter"
    extra = f", num_labels={len(labels)}" if labels else ""
    order = f"\nlabels = {list(labels)!r}  # in the order of the logits" if labels else ""
    base = f"{plan.base.name!r}  # or the folder where your copy lies"
    if "://" in plan.base.name:  # a location that Wardround alone can read
        base = f'"path/to/your/copy"  # of {plan.base.name}'
    revision = f", revision={plan.base.revision!r}" if plan.base.revision else ""
    tokens = facts.task["reads_tokens"]
    names = f"{kind}, AutoTokenizer" if tokens else kind
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained(base{revision})\n" if tokens else ""
    return f"""## Loading it

With plain `peft` and `transformers`, in this folder; Wardround is not needed. The base model has to be the
one that was trained on (SHA-256 of its weights: `{plan.base.digest[:16]}…`).

```python
from peft import PeftModel
from transformers import {names}

base = {base}
{tokenizer}model = {kind}.from_pretrained(base{revision}{extra})
model = PeftModel.from_pretrained(model, "{place}").eval(){order}
```

`wardround merge` writes one model without an adapter and proves that it answers alike."""


def _provenance(facts: CardFacts) -> str:
    plan = facts.plan
    entries = {
        "plan": plan.digest, "base model": plan.base.digest, "initial adapter": plan.adapter.initial_digest,
        "released adapter": facts.adapter_digest, "tokenizer": plan.data.tokenizer_digest,
    }  # fmt: skip
    entries |= {f"adapter of {site}": digest for site, digest in facts.own.items()}
    digests = markdown_table(
        ("SHA-256 of", ""), [(key, f"`{text}`") for key, text in entries.items() if text]
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts.environment.items())
    return (
        f"## Provenance\n\nSeed {plan.seed}; configuration: `config.yaml`; plan: `plan.json`.\n\n{digests}"
        + (f"\n\n{versions}." if versions else "")
    )


def _value(test: Test, metric: str) -> str:
    return _number(test.values.get(metric))


def _number(value: float | None, *, whole: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if whole else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"  # noqa: PLR2004 - 123.4 but 0.123


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
