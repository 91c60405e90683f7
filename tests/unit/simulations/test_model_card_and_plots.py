"""The model card and the curves say what the run was, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.image import imread

from wardround.core.metrics.contract import Scores
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    AdapterSpec,
    BaseModelSpec,
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    Schedule,
    TaskSpec,
    TextTemplate,
    TrainingPlan,
)
from wardround.runtime.events import (
    Evaluated,
    Event,
    Improved,
    PrivacyReported,
    PrivacySpent,
    RoundFolded,
    RoundTimed,
    RunFinished,
    RunStarted,
)
from wardround.runtime.sinks import JsonlSink
from wardround.simulations.comparison import compare
from wardround.simulations.model_card import card_of
from wardround.simulations.plots import curves_of, draw, plot_run
from wardround.simulations.secure_costs import secure_record
from wardround.training.tasks import TASKS

SITES = {"budapest": 200, "zürich | basel": 90}


def plan_of(labels: tuple[str, ...] = ("healthy", "sick")) -> TrainingPlan:
    """A plan of the demo's kind."""
    return TrainingPlan(
        name="heart", seed=7, base=BaseModelSpec(name="org/minilm", digest="b" * 64),
        task=TaskSpec(
            name="sequence_classification" if labels else "causal_lm",
            metrics="classification" if labels else "language",
        ),
        data=DataContract(
            columns={"label": "disease"}, template=TextTemplate(segments=("Age {age}.",)), labels=labels,
            tokenizer_digest="t" * 64,
        ),
        adapter=AdapterSpec(
            options={"r": 8}, initial_digest="i" * 64,
            layout=Layout(tensors=(TensorSpec(name="a", shape=(1200, 2)),)),
        ),
        local=LocalWork(epochs=1, schedule=Schedule(shape="cosine", floor=0.1)),
        encoding=Encoding(largest=0.1, most_weight=200), rounds=RoundRules(rounds=10),
        release=ReleaseRule(metric="macro_f1", direction="max"),
    )  # fmt: skip


def scores(value: float) -> dict[str, Any]:
    """A scores record of `summary.json`."""
    return {
        "values": {"macro_f1": value, "loss": 0.5},
        "support": {"macro_f1": 183, "loss": 183},
        "by_class": {"healthy": {"f1": value, "support": 83.0}, "sick": {"f1": 0.7, "support": 100.0}},
    }


def as_scores(record: dict[str, Any]) -> Scores:
    """The scores that a record of `summary.json` was made of."""
    return Scores(record["values"], record["support"], {}, record["by_class"])


def arm(test: dict[str, Any], released: int = 7) -> dict[str, Any]:
    """An arm's record of `summary.json`."""
    return {
        "reason": "completed", "last_round": 10, "released_round": released, "released_adapter": "r" * 64,
        "last_adapter": "l" * 64, "validation": [[0, 0.4], [released, 0.81234], [10, 0.78]], "test": test,
        "wall_s": 3.0,
    }  # fmt: skip


def summary(
    task: str = "sequence_classification", *, tested: bool = True, bounds: bool = True
) -> dict[str, Any]:
    """What a finished run writes into `summary.json`."""
    own = {f"test/{site}": scores(0.75) for site in SITES}
    arms = {"federated": arm({"test": scores(0.8), **own} if tested else {})}
    if bounds:
        arms |= {f"local/{site}": arm({"test": scores(0.6), f"test/{site}": scores(0.55)}) for site in SITES}
        arms["centralised"] = arm({"test": scores(0.82)})
    before = {"test": scores(0.3), **{f"test/{site}": scores(0.25) for site in SITES}} if tested else {}
    parsed = {
        name: {part: as_scores(record) for part, record in told["test"].items()}
        for name, told in arms.items()
    }
    return {
        "before_training": before,
        "comparison": compare(parsed, {part: as_scores(record) for part, record in before.items()}),
        "test_rows": {"everybody": 183, "sites": dict(zip(SITES, (41, 12), strict=True))},
        "data": {
            "description": "Records of two hospitals.", "licence": "CC BY 4.0. Doe (1989).",
            "label_meanings": {"sick": "has the disease"}, "training_sources": ["rows.csv"],
            "test_sources": ["data://heart/test.csv"],
        },
        "task": {
            name: getattr(TASKS.get(task), name)
            for name in ("auto_class", "pipeline_tag", "caution")
        } | {"reads_tokens": True},
        "sites": SITES, "arms": arms, "notices": ["cleveland: 2 rows were\nquarantined"],
        "privacy": {"differential_privacy": "none", "secure_aggregation": "real"},
        "secure": secure_record(plan_of(), []),
        "environment": {"torch": "2.13"},
    }  # fmt: skip


def front_matter(card: str) -> dict[str, Any]:
    """The card's YAML."""
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_front_matter_is_hugging_face_s() -> None:
    """Valid YAML that names base and library; the licence is left to the person who releases."""
    found = front_matter(card_of(plan_of(), summary()))
    assert found == {
        "base_model": "org/minilm",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora", "federated-learning", "medical", "wardround"],
    }
    assert (
        front_matter(card_of(plan_of(labels=()), summary("causal_lm")))["pipeline_tag"] == "text-generation"
    )


def test_the_card_says_what_was_trained_on_what() -> None:
    """Sites, rows, labels, template, digests, strategy, rounds and the released one with its reason."""
    plan = plan_of()
    card = card_of(plan, summary())
    for text in (
        "2 sites (290 rows)", "| labels | healthy, sick |", "Labels: healthy; sick: has the disease.",
        "Records of two hospitals.", "Licence of the rows: CC BY 4.0. Doe (1989).", "Trained on: `rows.csv`.",
        "Tested on: `data://heart/test.csv`.", "| base model | float32, not quantised |",
        "| learning rate | cosine, over the run, down to 10% of the peak |", "Age {age}.",
        plan.digest, "b" * 64, "r" * 64,
        "| strategy | fedavg",
        "Round 7. Chosen by macro_f1 on the sites' validation rows, the highest wins: 0.812",
        "The last round had 0.780", "No differential privacy: what the adapter gives away",
        "Secure aggregation real",
        "Not a medical device",
        "not validated clinically", "torch 2.13", "2,400", "Seed 7", "2 rows were quarantined",
    ):  # fmt: skip
        assert text in card, text


def test_long_lists_of_an_option_stand_as_their_number() -> None:
    """Two dozen texts would bury the card; a few module names are what it is for."""
    plan = plan_of()
    options = {"targets": ["query", "value"], "public_texts": [f"text {n}" for n in range(24)]}
    card = card_of(
        plan.model_copy(update={"adapter": plan.adapter.model_copy(update={"options": options})}), summary()
    )
    assert "| adapter | lora, targets ['query', 'value'], public_texts (24 of them) |" in card
    assert "text 7" not in card


def test_results_stand_with_their_support() -> None:
    """Every arm on everybody's test rows, each class with its rows, each site beside its local-only model."""
    card = card_of(plan_of(), summary())
    for line in (
        "| before training (initial adapter) | 0.300 | 0.500 |",
        "| federated (this adapter) | 0.800 | 0.500 |",
        "| centralised, as many steps | 0.820 | 0.500 |",
        "| local-only, mean of 2 sites | 0.600 | 0.500 |",
        "| support | 183 rows | 183 rows |",
        "| sick | 0.700 | 100 |",
        "| budapest | 200 | 0.250 | 0.750 | 0.550 | 41 |",
        "| zürich \\| basel | 90 | 0.250 | 0.750 | 0.550 | 12 |",
    ):
        assert line in card.splitlines(), line


def test_the_support_of_a_language_model_is_no_number_of_rows() -> None:
    """Bits per byte stand on bytes, a loss on tokens; the sites' column holds rows all the same."""
    record, told = summary("causal_lm", bounds=False), {"bits_per_byte": 2.5, "loss": 3.0}
    support = {"bits_per_byte": 90210, "loss": 4711}
    for part in record["arms"]["federated"]["test"].values():
        part.update(values=told, support=support, by_class={})
    record["comparison"] = {"federated": told}
    lines = card_of(plan_of(()), record).splitlines()
    assert "| support | 90,210 bytes | 4,711 tokens |" in lines
    assert any(line.startswith("| budapest | 200 |") and line.endswith("| 41 |") for line in lines)


def test_what_was_not_given_is_not_made_up() -> None:
    """Without description and licence the card names the sources, and says that no licence was given."""
    record = summary()
    record["data"] |= {"description": None, "licence": None, "label_meanings": {}}
    card = card_of(plan_of(), record)
    assert "The licence of the rows was not given." in card
    assert "Labels: healthy; sick." in card


def test_every_table_is_rectangular() -> None:
    """Whatever a site is called, a table keeps its columns."""
    for card in (card_of(plan_of(), summary()), card_of(plan_of(()), summary(tested=False, bounds=False))):
        width = 0
        for line in card.splitlines():
            cells = line.replace("\\|", "").count("|")
            if line.startswith("|"):
                assert cells == (width or cells), line
            width = cells if line.startswith("|") else 0


def test_a_run_without_test_rows_claims_nothing() -> None:
    """No score is made up where none was measured."""
    card = card_of(plan_of(), summary(tested=False, bounds=False))
    assert "nothing here says how good the model is" in card
    assert "own test rows" not in card


def test_a_run_without_validation_releases_the_last_round() -> None:
    """The reason is said, no figure is made up."""
    record = summary()
    record["arms"]["federated"]["validation"] = []
    assert "It is the last one: nothing was scored" in card_of(plan_of(), record)


def test_a_run_that_did_not_help_says_so() -> None:
    """Where the initial adapter is the best one, the card does not let it pass for a trained one."""
    record = summary()
    record["arms"]["federated"] = arm({}, released=0)
    assert "the adapter that the run began with" in card_of(plan_of(), record)
    assert "began with" not in card_of(plan_of(), summary())


def test_answers_are_quoted_as_code() -> None:
    """What a model writes cannot become the card's own Markdown."""
    card = card_of(plan_of(()), summary("causal_lm"), [{"prompt": "Hi", "answer": "# Buy\n\n| this |"}])
    assert "    answer: # Buy | this |" in card.splitlines()
    assert "AutoModelForCausalLM" in card


def test_the_loading_code_compiles() -> None:
    """The code block is Python and names labels in the order of the logits."""
    card = card_of(plan_of(), summary())
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "num_labels=2" in code
    assert "labels = ['healthy', 'sick']" in code


def run_events(metric: str = "macro_f1", sites: tuple[str, ...] = ("a$1$", "b")) -> list[Event]:
    """Three arms: the federation's best round is one in the middle."""
    events: list[Event] = []
    for name, level in (("federated", 0.8), *((f"local/{s}", 0.5) for s in sites), ("centralised", 0.9)):
        events.append(RunStarted("r", name, "heart $x$", "p", 4, sites if name == "federated" else ("x",)))
        for round in range(5):
            value = level - 0.05 * abs(round - 3)
            events += [
                RoundFolded(name, round, ("x",), (), 1.0, 0.1, 1, 0.1, "d"),
                Evaluated(name, round, "validation", {metric: value, "other": 1.0}, {metric: 9}),
            ]
            if name == "federated":
                events += [Evaluated(name, round, "test/b", {metric: 0.0}, {metric: 9})]  # every k rounds
        events += [Improved(name, 3, metric, level), RunFinished(name, "completed", 4, 3, "d", 1.0)]
        for site in sites:
            if not name.startswith("local/") or name == f"local/{site}":
                events.append(Evaluated(name, 3, f"test/{site}", {metric: level}, {metric: 9}))
    return events


def test_curves_are_the_events() -> None:
    """Values by round and arm, the released round, and the released adapter's score at each site."""
    curves = curves_of(run_events())
    assert curves.metric == "macro_f1"
    assert curves.by_round["federated"] == pytest.approx({0: 0.65, 1: 0.7, 2: 0.75, 3: 0.8, 4: 0.75})
    assert curves.best["federated"] == 3
    assert curves.by_site == {
        "federated": {"a$1$": 0.8, "b": 0.8},
        "local/": {"a$1$": 0.5, "b": 0.5},
        "centralised": {"a$1$": 0.9, "b": 0.9},
    }


def lines_of(axes: Axes) -> dict[str, Any]:
    """Label → line."""
    return {str(line.get_label()): line for line in axes.get_lines()}


def test_the_picture_shows_the_curves() -> None:
    """The star stands on the released round, the mean of the local runs is the mean, every bar is there."""
    figure = draw(curves_of(run_events()))
    left, right = figure.axes
    lines = lines_of(left)
    assert list(lines["federated"].get_ydata()) == pytest.approx([0.65, 0.7, 0.75, 0.8, 0.75])
    assert list(lines["released: round 3"].get_xydata()[0]) == pytest.approx([3, 0.8])
    assert lines["local-only, mean"].get_ydata()[3] == pytest.approx(0.5)
    assert left.get_ylabel() == "macro-F1"
    heights = sorted(bar.get_height() for bar in right.patches)  # type: ignore[attr-defined]  # bars are rectangles
    assert heights == pytest.approx([0.5, 0.5, 0.8, 0.8, 0.9, 0.9])


def test_the_picture_shows_what_was_reserved_and_what_was_spent() -> None:
    """The largest ε of the federation's sites by round, from zero on, with its δ and unit; no other arm's."""
    reserved = [
        PrivacySpent(name, round, "patient", 1e-4, {"a": 1.0 * round * scale, "b": 2.0 * round * scale})
        for name, scale in (("federated", 1), ("local/b", 9))
        for round in (1, 2, 3, 4)
    ]
    sites = {"a": {"reserved": 4.0, "spent": 3.0}, "b": {"reserved": 8.0, "spent": 7.0}}
    spent = PrivacyReported("federated", 4, 4, "patient", 1e-4, sites)
    figure = draw(curves_of([*run_events(), *reserved, spent]))
    line, mark = [line for axes in figure.axes for line in axes.get_lines() if "ε" in str(line.get_label())]
    assert list(line.get_ydata()) == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0])
    assert line.get_label() == "ε reserved: 8 at δ = 0.0001 per patient"
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([4], [7.0])
    assert mark.get_label() == "ε spent: 7"
    assert not [line for line in lines_of(draw(curves_of(run_events())).axes[0]) if "ε" in line]


def test_the_picture_shows_virtual_time_above_the_rounds() -> None:
    """At the ends of some rounds, the last one among them; no such axis without a virtual clock."""
    timed = [
        RoundTimed(name, round, 60.0, scale * 60.0 * round)
        for name, scale in (("federated", 5), ("local/b", 9))
        for round in (1, 2, 3, 4, 5)
    ]
    left, top = draw(curves_of([*run_events(), *timed])).axes[:2]
    labels = {
        tick: label.get_text() for tick, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True)
    }
    assert labels == {1: "5.0 min", 2: "10.0 min", 3: "15.0 min", 4: "20.0 min"}
    assert top.get_xlim() == left.get_xlim()
    assert len(draw(curves_of(run_events())).axes) == 2
    many = [RoundTimed("federated", round, 1.0, float(round)) for round in range(1, 12)]
    top = draw(curves_of(many)).axes[1]
    assert list(top.get_xticks()) == [2, 5, 8, 11]


def test_without_site_tests_there_is_one_panel() -> None:
    """And without any score the training loss is drawn."""
    told = [event for event in run_events() if not isinstance(event, Evaluated)]
    figure = draw(curves_of(told))
    assert len(figure.axes) == 1
    assert figure.axes[0].get_title() == "training loss (nats)"


@pytest.mark.parametrize("sites", [("a$1$", "b"), tuple(f"hospital number {i}" for i in range(40))])
def test_the_file_is_a_picture(tmp_path: Path, sites: tuple[str, ...]) -> None:
    """From the log on disk, for two sites or forty; dollar signs in names are no mathematics."""
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for event in run_events(sites=sites):
        sink.emit(event)
    plot_run(tmp_path / "metrics.jsonl", tmp_path / "curves.png", metric="macro_f1")
    pixels = imread(tmp_path / "curves.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1200
    assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, pixels.shape[2])}) > 10


def test_an_empty_run_still_gives_a_picture(tmp_path: Path) -> None:
    """A run that was cut off at once says so instead of failing."""
    plot_run([], tmp_path / "curves.png")
    figure = draw(curves_of([]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing was scored"]
