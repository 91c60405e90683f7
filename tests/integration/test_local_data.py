"""A site turns a plan and its own rows into what the simulation would train on, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wardround.client.local_data import LocalData, open_bench, read_rows, ready
from wardround.client.policy import PlanPolicy, RefusedPlanError
from wardround.client.site_settings import ModelPlace, SiteSettings
from wardround.core.enrolment import UNREADY
from wardround.core.errors import UnreadyError
from wardround.core.plan import SecureRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.runtime.events import EventStream
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import Preparation, encode_all, prepare
from wardround.training.site_rows import bounded_site
from wardround.training.source_spec import SourceSpec

LABELS = ("mild", "severe")
SIZES = {"a": 10, "b": 13, "c": 16, "d": 19, "e": 22}
OWN_NAMES = {"note": "befund", "grade": "schwere", "patient": "fall"}


def write(folder: Path, ward: str, count: int, names: dict[str, str] | None = None) -> str:
    """A ward's rows, two of each patient, some of them long."""
    rows = [
        {"note": f"case {i} of {ward} " * (i % 4 + 1), "grade": LABELS[i % 2], "patient": f"{ward}-{i // 2}"}
        for i in range(count)
    ]
    path = folder / f"{ward}{'' if names is None else '-own'}.jsonl"
    own = [{(names or {}).get(key, key): value for key, value in row.items()} for row in rows]
    path.write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    return str(path)


def configured(folder: Path, model: Path, **sections: Any) -> RunConfig:
    """Five wards with a source each."""
    plain: dict[str, Any] = {
        "name": "wards",
        "model": {"path": str(model)},
        "task": {"name": "sequence_classification"},
        "data": {
            "sites": {ward: {"path": write(folder, ward, SIZES[ward])} for ward in SIZES},
            "columns": {"text": "note", "label": "grade"}, "labels": LABELS, "max_length": 16,
            "unit_column": "patient", "validation_fraction": 0.3,
        },
        "adapter": {"options": {"r": 2}},
        "local": {"epochs": 1, "batch_size": 4},
        "rounds": {"rounds": 2},
    }  # fmt: skip
    return RunConfig.parse(plain | sections)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Preparation:
    """The simulation of the same wards."""
    return prepare(configured(tmp_path_factory.mktemp("wards"), tiny_bert))


def settings_for(source: str, *models: Path | ModelPlace, **more: Any) -> SiteSettings:
    """A site's settings."""
    places = tuple(
        model if isinstance(model, ModelPlace) else ModelPlace(path=str(model)) for model in models
    )
    few = PlanPolicy(least_units=1, least_a_label=1, adapters=("lora", "future"))
    return SiteSettings(**({"models": places, "source": SourceSpec(path=source), "plans": few} | more))


def bits(rows: Any) -> list[dict[str, Any]]:
    """What encoded rows hold, comparable bit for bit."""
    return [
        {
            name: value.tobytes() if isinstance(value, np.ndarray) else value
            for name, value in vars(row).items()
        }
        for row in rows
    ]


@pytest.mark.parametrize("names", [None, OWN_NAMES], ids=["same", "renamed"])
def test_a_sites_rows_are_the_simulations_bit_for_bit(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation, names: dict[str, str] | None
) -> None:
    """What is trained on, what is held back, and whose each row is; also where columns have other names."""
    arm, _ = encode_all(simulated, EventStream())
    for ward in "ae":
        source = write(tmp_path, ward, SIZES[ward], names)
        found = ready(settings_for(source, tiny_bert, columns=names or {}), simulated.plan, ward)
        expected = arm.sites[ward]
        assert len(expected.validation) > 0
        assert bits(found.rows.training) == bits(expected.training)
        assert bits(found.rows.validation) == bits(expected.validation)
        assert found.rows.units == expected.units
        assert found.bench.layout.digest == simulated.plan.adapter.layout.digest
        assert found.bench.base.digest == simulated.plan.base.digest
        assert found.estimate == "enough"
        assert any("tokens were cut" in notice for notice in found.notices)


def test_the_name_of_a_site_decides_what_it_holds_back(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """The twin of the test above: under another name the parts differ, and a look at it shows no row."""
    source = write(tmp_path, "a", 10)
    one, other = (ready(settings_for(source, tiny_bert), simulated.plan, name) for name in ("a", "b"))
    assert one.rows.units != other.rows.units
    assert isinstance(one, LocalData)
    assert repr(one) == "LocalData(estimate='enough')"


def refusal(settings: SiteSettings, plan: TrainingPlan, site: str = "a") -> UnreadyError:
    """Why a site cannot train."""
    with pytest.raises(UnreadyError) as caught:
        ready(settings, plan, site)
    assert caught.value.code in UNREADY
    return caught.value


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (None, "rows"),
        ([], "not_enough_rows"),
        (["{", "{", "{"], "broken_rows"),
        ([{"note": "secret text", "grade": "mild"}], "columns"),
        ([{"note": "secret text", "grade": "fatal", "patient": "p"}], "labels"),
        ([{"note": "", "grade": "mild", "patient": "p"}] * 3, "broken_rows"),
    ],
    ids=["absent", "empty", "broken", "column", "label", "blank"],
)  # fmt: skip
def test_rows_that_do_not_fit_have_a_code(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation, lines: list[Any] | None, code: str
) -> None:
    """A model is not loaded for them, and no text of a row is in any word of it."""
    path = tmp_path / "rows.jsonl"
    if lines is not None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("\n".join(texts), encoding="utf-8")
    settings = settings_for(str(path), tiny_bert)
    error = refusal(settings, simulated.plan)
    assert error.code == code
    assert "secret text" not in str(error)
    with pytest.raises(UnreadyError):
        read_rows(settings, simulated.plan, "a")


def test_a_renaming_of_a_column_that_is_not_there_is_named(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """With the nearest one that is."""
    source = write(tmp_path, "a", 10, OWN_NAMES)
    error = refusal(settings_for(source, tiny_bert, columns=OWN_NAMES | {"note": "befunde"}), simulated.plan)
    assert (error.code, error.remedy) == ("columns", "did you mean 'befund'?")


def test_few_rows_are_not_enough_for_a_batch_and_their_number_is_not_told(
    tmp_path: Path, simulated: Preparation
) -> None:
    """Three patients, one of them held back: four rows to train on are a batch; those of one are not."""
    answers = []
    for count in (6, 2):
        rows = read_rows(settings_for(write(tmp_path, "a", count), Path("none")), simulated.plan, "a")
        answers.append(rows.estimate)
        assert repr(rows) == f"LocalRows(estimate={rows.estimate!r})"
    assert answers == ["enough", "not enough"]


@pytest.mark.parametrize("weighting", ["examples", "targets", "uniform"])
def test_a_site_with_more_rows_than_the_plan_allows_is_told_before_a_round(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation, weighting: Any
) -> None:
    """At the bound it takes part, and one below it would fail in every round."""
    settings = settings_for(write(tmp_path, "a", 10), tiny_bert)
    strategy = StrategySpec(weighting=weighting)

    def bounded(largest: int) -> TrainingPlan:
        encoding = simulated.plan.encoding.model_copy(update={"most_weight": largest})
        return simulated.plan.model_copy(update={"encoding": encoding, "strategy": strategy})

    trained = len(ready(settings, bounded(100), "a").rows.training)
    assert trained == 6
    ready(settings, bounded(1 if weighting == "uniform" else trained), "a")
    if weighting != "uniform":
        assert refusal(settings, bounded(trained - 1)).code == "too_many_rows"


def test_under_privacy_of_single_rows_no_patient_has_more_of_them_than_the_plan_counts_on(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """The rows that a simulation of the site keeps, and no others: the ledger charges for so many."""
    rules = PrivacyRules(unit="example", sigma=1.0, delta=1e-3, most_examples=1)
    plan = simulated.plan.model_copy(update={"privacy": rules})
    source = write(tmp_path, "e", SIZES["e"])
    everything = ready(settings_for(source, tiny_bert), simulated.plan, "e").rows
    found = ready(settings_for(source, tiny_bert), plan, "e").rows
    assert len(found.units) == len(set(found.units)) == len(set(everything.units)) < len(everything.units)
    assert bits(found.training) == bits(bounded_site(plan, "e", everything).training)


def private(plan: TrainingPlan, batch: int) -> TrainingPlan:
    """The same with noise of the site's own."""
    fields = json.loads(plan.canonical())
    fields["privacy"] = {"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3}
    fields["strategy"]["weighting"] = "uniform"
    fields["local"] |= {"max_grad_norm": None, "batch_size": batch}
    return TrainingPlan.parse(json.dumps(fields))


def test_a_private_batch_needs_as_many_units(tmp_path: Path, simulated: Preparation) -> None:
    """A site of fewer patients is refused by code; δ of another site's size as well."""
    settings = settings_for(write(tmp_path, "a", 12), Path("none"))
    assert read_rows(settings, private(simulated.plan, 4), "a").estimate == "enough"
    with pytest.raises(UnreadyError) as caught:
        read_rows(settings, private(simulated.plan, 5), "a")
    assert caught.value.code == "not_enough_rows"
    wide = private(simulated.plan, 4)
    rules = wide.privacy
    assert rules is not None
    wide = wide.model_copy(update={"privacy": rules.model_copy(update={"delta": 0.5})})
    with pytest.raises(UnreadyError) as caught:
        read_rows(settings, wide, "a")
    assert caught.value.code == "privacy"


def other_weights(model: Path, folder: Path) -> Path:
    """The same base with one weight moved."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    first = min(tensors)
    tensors[first] = tensors[first] + torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_base_model_is_found_by_its_digest(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """Whatever stands before it in the list; another model's known digest is not even opened."""
    plan, other = simulated.plan, other_weights(tiny_bert, tmp_path / "other")
    found = open_bench(settings_for("r", tmp_path / "none", other, tiny_bert), plan)
    assert found.base.digest == plan.base.digest
    known = ModelPlace(path=str(tiny_bert), digest=plan.base.digest)
    assert open_bench(settings_for("r", other, known), plan).base.name == tiny_bert.name


def test_a_base_model_that_is_not_the_plans_is_refused_by_code(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """Absent, other weights, another tokenizer, another adapter, a machine that cannot."""
    plan, source = simulated.plan, write(tmp_path, "a", 12)
    other = other_weights(tiny_bert, tmp_path / "other")
    absent = refusal(settings_for(source, tmp_path / "none"), plan)
    assert (absent.code, plan.base.digest in str(absent)) == ("model_absent", True)
    assert (
        refusal(settings_for(source, ModelPlace(path=str(tiny_bert), digest="0" * 64)), plan).code
        == "model_absent"
    )
    differs = refusal(settings_for(source, other, tmp_path / "none"), plan)
    assert (differs.code, plan.base.digest in str(differs)) == ("model_differs", True)
    settings = settings_for(source, tiny_bert)
    data = plan.data.model_copy(update={"tokenizer_digest": "0" * 64})
    assert refusal(settings, plan.model_copy(update={"data": data})).code == "tokenizer"
    data = plan.data.model_copy(update={"chat_template_digest": "0" * 64})
    assert refusal(settings, plan.model_copy(update={"data": data})).code == "tokenizer"
    options = plan.adapter.options | {"r": 3}
    adapter = plan.adapter.model_copy(update={"options": options})
    assert refusal(settings, plan.model_copy(update={"adapter": adapter})).code == "adapter"
    if not torch.cuda.is_available():
        without = settings.model_copy(
            update={"machine": settings.machine.model_copy(update={"device": "cuda"})}
        )
        assert refusal(without, plan).code == "machine"


def test_what_a_plan_names_and_this_site_lacks_is_refused_by_code(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """A strategy, a task, a method, an option; and never code by its path."""
    plan, settings = simulated.plan, settings_for(write(tmp_path, "a", 12), tiny_bert)
    for changed in (
        {"strategy": StrategySpec(name="fedfuture")},
        {"strategy": StrategySpec(name="os:system")},
        {"task": plan.task.model_copy(update={"name": "os:system"})},
        {"task": plan.task.model_copy(update={"options": {"future": 1}})},
        {"adapter": plan.adapter.model_copy(update={"method": "future"})},
        {"adapter": plan.adapter.model_copy(update={"options": {"future": 1}})},
    ):
        assert refusal(settings, plan.model_copy(update=changed)).code == "method", changed


def test_the_sites_own_policy_comes_first(tmp_path: Path, tiny_bert: Path, simulated: Preparation) -> None:
    """By default real secure aggregation over the whole cohort alone; no row is read for anything else."""
    plan, settings = simulated.plan, settings_for(str(tmp_path / "none.jsonl"), tiny_bert)
    groups = StrategySpec(name="group_median", options={"group_size": 5, "attackers": 1})
    for changed in ({"secure": SecureRules(mode="off")}, {"strategy": groups}):
        with pytest.raises(RefusedPlanError):
            ready(settings, plan.model_copy(update=changed), "a")
    loose = settings.model_copy(update={"policy": SecurePolicy(modes=("off",))})
    assert refusal(loose, plan.model_copy(update={"secure": SecureRules(mode="off")})).code == "rows"


def test_a_plan_that_hides_what_its_strategy_has_to_see_is_refused(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """Somebody signed it by hand; where the site lets itself be seen, its rows come next."""
    settings = settings_for(str(tmp_path / "none.jsonl"), tiny_bert)
    median = simulated.plan.model_copy(update={"strategy": StrategySpec(name="coordinate_median")})
    assert median.secure.mode == "real"
    error = refusal(settings, median)
    assert error.code == "method"
    assert "has to see each site's contribution" in str(error)
    loose = settings.model_copy(update={"policy": SecurePolicy(modes=("real", "off"))})
    assert refusal(loose, median).code == "method"
    assert refusal(loose, median.model_copy(update={"secure": SecureRules(mode="off")})).code == "rows"


def test_the_policy_counts_the_rows_before_a_model_is_opened(
    tmp_path: Path, tiny_bert: Path, simulated: Preparation
) -> None:
    """By default twenty units are asked for; which rule it was is for this site's own people."""
    source = write(tmp_path, "a", 10)
    settings = settings_for(source, ModelPlace(path="nowhere"), plans=PlanPolicy())
    error = refusal(settings, simulated.plan)
    assert (error.code, error.found) == (
        "policy", "the plan would train on too few patients or rows here (least_units)"
    )  # fmt: skip
    few = settings.model_copy(update={"plans": PlanPolicy(least_units=1)})
    assert refusal(few, simulated.plan).code == "model_absent"
    labels = few.model_copy(update={"plans": PlanPolicy(least_units=1, least_a_label=5)})
    assert "a label of the plan" in str(refusal(labels, simulated.plan).found)
