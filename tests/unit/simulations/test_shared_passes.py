"""Who trains together, and whose part is taken."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wardround.core.messages import Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import LocalWork
from wardround.privacy.noise.correlated import NoiseState
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.simulations import together
from wardround.simulations.together import Here, SharedPasses, same
from wardround.strategies.contract import LocalRules
from wardround.training.evaluation import ScoringJob
from wardround.training.local_round import LocalJob

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(3,)),))
ZERO = Packed(LAYOUT, np.zeros(3, np.float32))
ONE = Packed(LAYOUT, np.ones(3, np.float32))
JOB = LocalJob(
    [], ZERO, LocalWork(steps=1), LocalRules(gradient_offset=ZERO), round=2, rounds=3, seed_root=0, site="b",
    optimiser_state={"a//exp_avg": np.zeros(3)},
)  # fmt: skip


SCORING: Any = ScoringJob(ZERO, [], task=None, data=None)  # type: ignore[arg-type]  # nobody looks
NOBODY: Any = SimpleNamespace(ahead=0)
"""A crew where nothing is trained."""


def test_privacy_is_part_of_what_a_part_was_made_of() -> None:
    """Another clip norm, noise, number of steps, or place where correlated noise stands is another round."""

    def stand(key: bytes = b"k", done: int = 1, kept: float = 0.0) -> NoiseState:
        return NoiseState(key, done, np.full((1, 3), kept))

    private: Any = SimpleNamespace(rules="r", cost="c", clip_norm=1.0, done=0, state=stand())
    anew = SimpleNamespace(**{**vars(private), "state": stand()})
    assert same(replace(JOB, private=private), replace(JOB, private=anew))
    for state in (None, stand(key=b"l"), stand(done=2), stand(kept=1.0)):
        later = SimpleNamespace(**{**vars(private), "state": state})
        assert not same(replace(JOB, private=private), replace(JOB, private=later))
    assert same(replace(JOB, private=private), replace(JOB, private=SimpleNamespace(**vars(private))))
    assert not same(replace(JOB, private=private), JOB)
    for name, value in {"rules": "q", "cost": "d", "clip_norm": 2.0, "done": 1}.items():
        other: Any = SimpleNamespace(**{**vars(private), name: value})
        assert not same(replace(JOB, private=private), replace(JOB, private=other))


@pytest.mark.parametrize(
    "other",
    [
        {"round": 3}, {"site": "c"}, {"work": LocalWork(steps=2)}, {"encoded": []}, {"before": ONE},
        {"rest": ONE},
        {"rules": LocalRules(proximal=0.1, gradient_offset=ZERO)},
        {"rules": LocalRules(frozen=frozenset("a"), gradient_offset=ZERO)},
        {"rules": LocalRules(mean_gradient=True, gradient_offset=ZERO)},
        {"rules": LocalRules(gradient_offset=ONE)}, {"rules": LocalRules()},
        {"optimiser_state": None}, {"optimiser_state": {"a//exp_avg": np.ones(3)}},
    ],
    ids=str,
)  # fmt: skip
def test_a_part_that_was_made_of_something_else_is_not_taken(other: dict[str, Any]) -> None:
    """A site's own checks may have changed what it goes on from: it trains by itself then."""
    assert same(JOB, replace(JOB))
    made = replace(JOB, **other)
    assert not same(made, JOB)
    passes = SharedPasses(NOBODY, 2)
    passes._asked, passes._training = ("a", "b"), frozenset("ab")
    key = "run", 2, "b", LocalJob
    passes._made = {key: (made, ValueError("of another job"))}
    site: Any = SimpleNamespace(name="b", run_id="run")
    asked: Any = SimpleNamespace(round=2)
    assert passes(asked, ZERO, site, JOB) is None
    passes._made[key] = (JOB, ValueError("its own"))
    with pytest.raises(ValueError, match="its own"):
        passes(asked, ZERO, site, JOB)


def test_who_trains_together_depends_on_who_is_asked_alone() -> None:
    """Not on the order of the requests, and not on those that ask for no training."""
    sites: Any = {
        name: SimpleNamespace(training=range(size))
        for name, size in zip("abcde", (5, 5, 5, 9, 1), strict=True)
    }
    passes = SharedPasses(NOBODY, 2, sites)

    def request(site: str, name: str = TRAINING, exchange: int = 0) -> Request:
        return Request(run_id="run", plan_digest="", round=1, site=site, sums={name: b""}, exchange=exchange)

    passes.announce([request("d"), request("a"), request("c"), request("e", EVALUATION), request("b")])
    assert passes._asked == ("d", "a", "b", "c"), "the largest first, then by name"
    passes.announce([request("e", exchange=1)])
    assert passes._asked == ("d", "a", "b", "c"), "a later exchange changes nothing"


class Busy:
    """A crew that is asked ahead, and says what is under way."""

    ahead = 2

    def __init__(self) -> None:
        self.begun: list[tuple[str, ...]] = []
        self.under_way = self.most = 0

    @staticmethod
    def of(job: Any) -> str:
        """What a job gives: its site's name."""
        return str(job.site)

    def start(self, jobs: Any) -> Any:
        """Begin a lot."""
        self.begun.append(tuple(map(self.of, jobs)))
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def wait() -> list[Any]:
            self.under_way -= 1
            return list(map(self.of, jobs))

        return wait


def test_no_more_lots_are_under_way_than_the_crew_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which the sites are asked; each trains once, whoever of its lot comes first."""
    names, crew = tuple("abcdefghij"), Busy()
    sites: Any = {name: SimpleNamespace(training=[], name=name, run_id="run") for name in names}
    passes = SharedPasses(crew, 2, sites)
    monkeypatch.setattr(together, "job_ahead", lambda request, broadcast, site: replace(JOB, site=site.name))
    requests = [Request("run", "", 2, site, {TRAINING: b""}) for site in reversed(names)]
    asked = passes.announce(requests)
    assert [request.site for request in asked] == list(names)
    for pair in zip(names[::2], names[1::2], strict=True):
        for name in reversed(pair):
            assert passes(asked[0], ZERO, sites[name], replace(JOB, site=name)) == name
    assert crew.begun == list(zip(names[::2], names[1::2], strict=True))
    assert crew.most == 3
    assert crew.under_way == 0
    assert passes(asked[0], ZERO, sites["a"], replace(JOB, site="a")) is None, "asked again, it trains itself"


def test_scores_go_with_training_and_change_nobodys_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a worker does them: a site that is only scored comes behind all that train."""
    crew = Busy()
    sites: Any = {
        name: SimpleNamespace(training=range(size), validation=[1], name=name, run_id="run")
        for name, size in zip("abcd", (2, 9, 5, 1), strict=True)
    }
    monkeypatch.setattr(together, "job_ahead", lambda request, broadcast, site: replace(JOB, site=site.name))
    monkeypatch.setattr(together, "scoring_of", lambda round, broadcast, site: SCORING)

    def request(site: str, *sums: str) -> Request:
        return Request("run", "", 2, site, dict.fromkeys(sums, b""))

    both = TRAINING, EVALUATION
    asked = [request("a", *both), request("b", EVALUATION), request("c", *both), request("d", TRAINING)]
    passes = SharedPasses(crew, 2, sites)
    passes.announce(asked)
    assert passes._asked == ("c", "a", "d", "b")
    monkeypatch.setattr(Busy, "of", staticmethod(lambda job: type(job).__name__))
    assert passes.scored(asked[0], ZERO, sites["c"], SCORING) == "ScoringJob"
    assert crew.begun == [("ScoringJob", "LocalJob") * 2, ("LocalJob", "ScoringJob")]
    assert passes(asked[0], ZERO, sites["c"], replace(JOB, site="c")) == "LocalJob"
    assert passes.scored(asked[0], ZERO, sites["d"], SCORING) is None, "nobody asked"
    changed = replace(SCORING, adapter=ONE)
    assert passes.scored(asked[0], ZERO, sites["b"], changed) is None, "of another adapter"
    here = SharedPasses(Here(lambda _: []), 2, sites)
    here.announce(asked)
    assert here._asked == ("c", "a", "d")
    assert here.scored(asked[0], ZERO, sites["c"], SCORING) is None, "who does nothing ahead scores in turn"


def test_a_crew_of_this_process_begins_nothing_ahead() -> None:
    """Sites by themselves go on as if there were none."""
    plain = SharedPasses(Here(lambda _: []), 1)
    assert not plain.used
    requests = [Request("run", "", 2, site, {TRAINING: b""}) for site in "ba"]
    assert plain.announce(requests) is requests
    assert SharedPasses(Here(lambda _: []), 2).used
    assert SharedPasses(Busy(), 1).used
