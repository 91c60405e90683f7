"""Of a real site's rows no count leaves exactly, or of fewer patients than its smallest cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import FEW, Federation
from offers import COUNTS, RUN, codes, node, offer, set_up

from wardround.client.site import Site
from wardround.client.work import figures_of, measure
from wardround.core.cells import EXACT, Cells
from wardround.core.messages import Request
from wardround.privacy.secagg.admission import Member
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.runtime.plan_folder import read_initial
from wardround.training.local_round import LocalResult

ROWS_A_PATIENT = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Three sites' folders, and a plan in `plan`."""
    counts = COUNTS | {"basel": 80}
    federation = Federation.make(tmp_path_factory.mktemp("cells"), tiny_bert, counts)
    federation.plan("plan")
    return federation


def served(federation: Federation, **plans: int) -> Site:
    """Basel's site in the run, under rules on plans."""
    set_up(federation, plans={key: value for key, value in (FEW | plans).items() if value is not None})
    own = node(federation)
    assert codes(own.answer(offer(federation))) == ("accepted", [])
    site = own.get((RUN, "basel"))
    assert site is not None
    return site


def held(site: Site, sum: str) -> int:
    """Sites by which survivors have to differ, as the site's party in the sum was made with."""
    member: Member = vars(site.parties.parties[sum])["_member"]
    return member.least_change


def test_by_default_five_patients_are_the_smallest_cell(federation: Federation) -> None:
    """Two rows each here; the secret stays the same from start to start, and is another site's own."""
    plans = {key: value for key, value in FEW.items() if key != "smallest_cell"}
    set_up(federation, plans=plans)
    own = node(federation)
    own.answer(offer(federation))
    site = own.get((RUN, "basel"))
    assert site is not None
    assert site.training_cells.smallest == site.validation_cells.smallest == 5 * ROWS_A_PATIENT
    again = node(federation).get((RUN, "basel"))
    assert again is not None
    assert again.training_cells == site.training_cells


def scored(federation: Federation, site: Site) -> dict[str, Any]:
    """Counters of the first round, whose broadcast is the plan's initial adapter."""
    initial = read_initial(federation.practice.folder / "plan", site.plan)
    asked = Request(RUN, site.plan.digest, 1, site.name, {EVALUATION: b""})
    return measure(asked, initial, site)


def test_scores_leave_as_multiples(federation: Federation) -> None:
    """Counters of the held-back rows, as the server would add them up."""
    site = served(federation, smallest_cell=2)
    assert len(site.validation) >= 2 * ROWS_A_PATIENT
    found = scored(federation, site)
    for name in ("examples", "confusion", "score_positives", "score_negatives"):
        assert not (found[name] % (2 * ROWS_A_PATIENT)).any(), name
    assert 0 < found["examples"] <= len(site.validation) + 2 * ROWS_A_PATIENT
    exact = scored(federation, served(federation, smallest_cell=1))
    assert exact["examples"] == len(site.validation)
    assert found["loss"] / found["examples"] == pytest.approx(exact["loss"] / exact["examples"], abs=1)


def test_the_weight_and_the_losses_of_training_leave_likewise(federation: Federation) -> None:
    """The mean loss stays; the site's own figures are those of the sums."""
    site = served(federation, smallest_cell=3)
    adapter = read_initial(federation.practice.folder / "plan", site.plan)
    result = LocalResult(adapter, None, steps=18, examples=71, targets=142, loss_sum=100.0)
    figures = figures_of(site, result)
    cell = 3 * ROWS_A_PATIENT
    assert figures.weight == figures.examples
    assert figures.examples % cell == 0
    assert abs(figures.examples - 71) < cell
    assert figures.targets == 2 * figures.examples
    assert figures.loss_sum / figures.targets == pytest.approx(100 / 142)


def test_rounded_up_a_site_weighs_no_more_than_the_plan_allows(federation: Federation) -> None:
    """Else it would be refused by its own encoder."""
    site = served(federation, smallest_cell=3)
    most = site.plan.encoding.most_weight
    adapter = read_initial(federation.practice.folder / "plan", site.plan)
    heavy = LocalResult(adapter, None, steps=1, examples=most, targets=most, loss_sum=1.0)
    for offset in range(6):
        weighed = Site(**(vars(site) | {"training_cells": Cells(6, offset)}))
        assert most - 6 < figures_of(weighed, heavy).weight <= most


def test_exact_counts_leave_where_a_site_says_so_and_its_scores_hold_back(federation: Federation) -> None:
    """The sum of scores is not opened then when one or two sites are gone; that of training is."""
    rounded, exact = served(federation, smallest_cell=5), served(federation, smallest_cell=1)
    assert exact.training_cells == exact.validation_cells == EXACT
    hides = {name: held(exact, name) for name in (TRAINING, EVALUATION)}
    assert hides == {TRAINING: 0, EVALUATION: 3}  # least_honest 2, assumed_colluders 1
    assert held(rounded, EVALUATION) == 0


def test_a_site_with_less_than_a_cell_sends_no_scores(federation: Federation) -> None:
    """All of its counters are zero, as if it had held nothing back."""
    site = served(federation, smallest_cell=40)
    found = scored(federation, site)
    assert not any(np.any(array) for array in found.values())
    # Its training rows are no small cell: it weighs what they are, in multiples of so many rows.
    assert site.training_cells.smallest == 40
