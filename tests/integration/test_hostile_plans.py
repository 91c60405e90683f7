"""A consortium that would like more than a model: its plans are refused with a reason before a row is read.

What a plan asks for is refused by the site's policy; what the consortium does in a run, by what the site
keeps of it. The defaults of a real site hold here, and none of the loosened rules of other tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
from federation import Federation
from offers import RUN, codes, node, offer, set_up

from wardround.client import local_data
from wardround.client.membership.site_folder import open_site_folder
from wardround.core.plan_offers import PlanOffer
from wardround.runtime.plan_folder import SIGNED, read_plan
from wardround.runtime.signed_plan import sign_plan
from wardround.runtime.small_files import read_identity

SITES = {"aachen": 60, "basel": 80, "cork": 60, "delft": 60, "essen": 60}
SOUND: dict[str, Any] = {"local": {"epochs": 1, "batch_size": 8}}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Five sites, of which basel has the rules that a site begins with."""
    made = Federation.make(
        tmp_path_factory.mktemp("hostile"), tiny_bert, SITES, plans={}, policy={"modes": ["real"]}
    )
    made.plan("plan", secure={"mode": "real"}, **SOUND)
    return made


def of(federation: Federation, name: str, **sections: Any) -> PlanOffer:
    """The offer of a plan that the consortium made and signed."""
    folder = federation.plan(name, **(SOUND | {"secure": {"mode": "real"}} | sections))
    run = f"{RUN[:-4]}{len(name):04d}"
    return offer(federation, plan=(folder / SIGNED).read_bytes(), run_id=run)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a row fails the test."""

    def read(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a row was read")

    monkeypatch.setattr(local_data, "read_examples", read)


MANY = {"rounds": 60, "deadline_s": 60.0}
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "memorises by tiny batches": ({"local": {"epochs": 1, "batch_size": 1}}, "least_batch"),
    "memorises by long steps": (
        {"local": {"steps": 100, "batch_size": 8, "learning_rate": 10.0}}, "most_learning",
    ),
    "memorises by passes": ({"rounds": MANY, "local": {"epochs": 2, "batch_size": 8}}, "most_passes"),
    "memorises by rank": ({"adapter": {"options": {"r": 128}}}, "most_rank"),
    "goes on for ever": (
        {"rounds": MANY | {"rounds": 300}, "local": {"steps": 1, "batch_size": 8}}, "most_rounds",
    ),
    "turns secure aggregation off": ({"secure": {"mode": "off"}}, "secure.mode=off"),
}  # fmt: skip


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("name", list(PLANS))
def test_a_hostile_plan_is_refused_before_a_row_is_read(federation: Federation, name: str) -> None:
    """By the rule that it breaks, under the defaults of a site."""
    sections, rule = PLANS[name]
    answer = node(federation).answer(of(federation, name.replace(" ", "-"), **sections))
    assert codes(answer)[0] == "refused"
    assert any(rule in reason.text for reason in answer.reasons), answer.reasons


def test_the_same_plan_without_the_hostile_part_is_accepted(federation: Federation) -> None:
    """So that the tests above refuse what they say."""
    assert codes(node(federation).answer(of(federation, "sound-again"))) == ("accepted", [])


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ({"columns": ["note", "grade"]}, "columns"),
        ({"labels": ["1" * 64]}, "labels"),
        ({"base_models": ["2" * 64]}, "base_models"),
        ({"modules": ["*.value"]}, "modules"),
        ({"privacy": "patient"}, "privacy"),
        ({"strategies": ["fedprox"]}, "strategies"),
    ],
)
def test_what_a_site_has_listed_no_plan_goes_beyond(
    federation: Federation, tmp_path: Path, rules: dict[str, Any], rule: str
) -> None:
    """Columns, labels, a base, modules, privacy, strategies: another one is refused by name."""
    own = federation.copied(tmp_path / "p")
    set_up(own, plans=rules)
    answer = node(own).answer(offer(own, plan=(federation.practice.folder / "plan" / SIGNED).read_bytes()))
    assert codes(answer) == ("refused", ["policy"])
    assert rule in answer.reasons[0].text


@pytest.mark.usefixtures("unread")
def test_a_plan_that_another_key_signed_is_refused(federation: Federation) -> None:
    """Such as the consortium's former one, or the server's own."""
    server = federation.practice.server / "identity.key"
    data = sign_plan(read_plan(federation.practice.folder / "plan"), read_identity(server))
    answer = node(federation).answer(offer(federation, plan=data))
    assert answer.verdict == "refused"
    site = open_site_folder(federation.practice.sites["basel"].path)
    assert site.consortium_key not in data


def test_layers_of_words_under_other_names_are_refused_once_the_model_is_loaded(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the layers are; before a person is asked, and before the site accepts."""
    monkeypatch.setattr(local_data, "of_vocabulary", lambda model, trained: (min(trained),))
    answer = node(federation).answer(of(federation, "words"))
    assert codes(answer) == ("refused", ["policy"])
