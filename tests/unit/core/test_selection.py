"""Which round is released: scores that lack sites beside whole ones."""

from __future__ import annotations

from wardround.core.plan import ReleaseRule
from wardround.core.selection import Missing, Selection

RULE = ReleaseRule(metric="accuracy", direction="max")


def selection(*scores: tuple[float, str], patience: int | None = None) -> Selection:
    """Rounds 1, 2, …: a value, and the missing sites as letters."""
    found = Selection(RULE.model_copy(update={"patience": patience}))
    for round, (value, missing) in enumerate(scores, start=1):
        found = found.add(round, value, tuple(missing))
    return found


def test_a_score_that_lacks_a_site_does_not_win_over_whole_ones() -> None:
    """However good it is."""
    assert selection((0.5, ""), (0.99, "d"), (0.6, "")).best == (3, 0.6)


def test_where_no_score_is_whole_the_largest_group_decides() -> None:
    """Of equals the one with fewer missing sites, then the earlier one."""
    assert selection((0.9, "c"), (0.5, "d"), (0.6, "d")).best == (3, 0.6)
    assert selection((0.9, "cd"), (0.5, "d")).best == (2, 0.5)
    assert selection((0.5, "c"), (0.9, "d")).best == (1, 0.5)
    assert selection((0.9, "d")).best == (1, 0.9)
    assert selection().best is None


def test_the_best_of_every_group_may_still_be_released() -> None:
    """Their states are kept: the group that decides may change, and its best may be an earlier round."""
    scores = [(0.5, ""), (0.9, "d"), (0.8, "d"), (0.6, "d")]
    before, after = selection(*scores[:2]), selection(*scores)
    assert before.best == (1, 0.5)
    assert after.best == (2, 0.9)
    assert after.best[0] in before.contenders
    assert before.contenders == {1, 2}


def test_only_scores_of_one_group_use_up_the_patience() -> None:
    """A score that can be held against none before it says nothing about improvement."""
    assert not selection((0.9, ""), (0.5, "d"), (0.4, "c"), patience=1).exhausted
    assert selection((0.9, ""), (0.5, "d"), (0.4, "d"), patience=1).exhausted
    assert not selection((0.9, ""), (0.5, "d"), (0.6, "d"), patience=1).exhausted
    assert selection((0.9, ""), (0.5, ""), patience=1).exhausted


def test_a_journal_without_the_missing_sites_means_that_nobody_was() -> None:
    """Scores that were written before these were."""
    old = Selection(RULE, ((1, 0.5), (2, 0.7)))
    missing: tuple[Missing, ...] = ((), (), ("d",))
    assert old.best == (2, 0.7)
    assert old.add(3, 0.9, ("d",)).missing == missing
    assert old.add(3, 0.9, ("d",)).best == (2, 0.7)
