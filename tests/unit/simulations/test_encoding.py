"""The plan's encoding: what was given stands, what is `auto` follows from the local work and the rows."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.core.errors import ConfigError
from wardround.core.plan import DataContract, Encoding, LocalWork
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import expected_of
from wardround.simulations.rows import Rows
from wardround.training.examples import Example
from wardround.training.plan_making import encoding_of
from wardround.training.planning import bounds_of

ROWS = {"budapest": 40, "zurich": 17, "basel": 9}


def rows_of(sites: dict[str, int]) -> Rows:
    """So many rows a site."""
    found = {
        name: [Example(f"{name}-{index}", {"text": "x"}) for index in range(count)]
        for name, count in sites.items()
    }
    return Rows(DataContract(columns={"text": "t"}), found, [], {}, ())


def made(
    encoding: dict[str, Any] | None = None, sites: dict[str, int] | None = None, **sections: Any
) -> Encoding:
    """The plan's encoding of a configuration over these sites."""
    config = RunConfig.parse(
        {
            "name": "x", "model": {"path": "none"}, "task": {"name": "sequence_classification"},
            "data": {"max_length": 32}, "local": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
            "rounds": {"rounds": 1}, "encoding": encoding or {}, **sections,
        }
    )  # fmt: skip
    return encoding_of(config, expected_of(config, rows_of(ROWS if sites is None else sites)))


def test_auto_takes_the_bounds_of_the_local_work_at_the_largest_site() -> None:
    """Of all its rows: which of them it holds back is its own business. Sixteen bits, lengths left alone."""
    work = LocalWork(epochs=2, batch_size=8, learning_rate=0.01)
    expected = bounds_of(work, "examples", 40, 32)
    assert made() == Encoding(bits=16, norm=None, **expected)
    assert made().most_weight == 40
    assert made({"largest": "auto", "most_weight": "auto"}) == made()


@pytest.mark.parametrize("weighting", ["examples", "targets", "uniform"])
def test_auto_follows_the_weighting(weighting: Any) -> None:
    """As the strategy weighs."""
    work = LocalWork(epochs=2, batch_size=8, learning_rate=0.01)
    found = made(strategy={"weighting": weighting})
    assert found.most_weight == bounds_of(work, weighting, 40, 32)["most_weight"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"largest": 0.25}, {"largest": 0.25}),
        ({"most_weight": 99}, {"most_weight": 99}),
        ({"bits": 24, "norm": 1.5}, {"bits": 24, "norm": 1.5}),
        ({"largest": 0.25, "most_weight": 3, "bits": 64}, {"largest": 0.25, "most_weight": 3, "bits": 64}),
    ],
)
def test_what_was_given_stands_and_the_rest_is_auto(given: dict[str, Any], kept: dict[str, Any]) -> None:
    """Also where it is smaller than what would follow: a site then clips, or says that it weighs too much."""
    assert made(given) == made().model_copy(update=kept)


def test_sgd_without_a_norm_needs_a_given_bound() -> None:
    """Nothing bounds its updates: refused with the remedy; a bound that was given is enough."""
    work = {"steps": 3, "optimiser": "sgd", "learning_rate": 0.1, "max_grad_norm": None}
    with pytest.raises(ConfigError, match=r"(?s)nothing bounds.*encoding\.largest"):
        made(local=work)
    given = made({"largest": 0.25, "most_weight": 40}, local=work)
    assert (given.largest, given.most_weight) == (0.25, 40)


def test_the_remedy_of_an_unbounded_contribution_works_by_itself() -> None:
    """The message says to set `encoding.largest`: the weight still follows from the rows."""
    work = {"steps": 3, "optimiser": "sgd", "learning_rate": 0.1, "max_grad_norm": None}
    assert made({"largest": 0.25}, local=work).most_weight == 40


def test_a_run_without_rows_has_bounds_all_the_same() -> None:
    """No site, or an empty one: whatever is wrong with that is said elsewhere."""
    assert made(sites={}) == made(sites={"a": 0}) == made(sites={"a": 1})


@pytest.mark.parametrize(
    "encoding", [{"largest": 0}, {"largest": "most"}, {"most_weight": 0}, {"bits": 17}, {"norm": 0}], ids=str
)
def test_a_bound_that_is_none_is_a_fault_of_the_configuration(encoding: dict[str, Any]) -> None:
    """Named by its place, before anything is read."""
    with pytest.raises(ConfigError, match=rf"encoding\.{next(iter(encoding))}"):
        made(encoding)
