"""What a ledger refuses, beside overdrawing: and how a refusal gets on record."""

from __future__ import annotations

from typing import Final

from wardround.client.ledger.book import Book
from wardround.client.ledger.charging import Refusal, refusal
from wardround.client.ledger.draws import Draw
from wardround.client.ledger.rows import Refused, Released, Terms, Why
from wardround.client.ledger.store import Store
from wardround.core.errors import PolicyError
from wardround.privacy.accounting.mechanisms import NoPrivacy
from wardround.privacy.accounting.tally import Tally

WHOLE: Final = 0
"""Round under which what is reserved for a whole run stands."""
WHOLE_RUN: Final = "the whole run"
"""Draw under which the refusal of a run without privacy stands."""


def check_run(book: Book, run: str, plan: str) -> None:
    """Refuse a run that this site left, or that has another plan than the ledger knows.

    Raises:
        PolicyError: It does.
    """
    if run in book.left:
        raise PolicyError(
            "this site does not join a run again whose rows it lost", found=run,
            expected="a run that began after the cap was written off",
            remedy="rows that may have sealed its rounds are gone: the run goes on without this site",
        )  # fmt: skip
    known = book.plans.get(run, plan)
    if known != plan:
        raise PolicyError(
            "the run has another plan than the ledger knows", found=f"{plan[:12]}…",
            expected=f"{known[:12]}…", remedy="another plan is another run, with an id of its own",
        )  # fmt: skip


def check_same(held: Terms, asked: Terms, lowered: int | None) -> None:
    """Refuse a draw that is asked for again, but not as it was.

    Raises:
        PolicyError: It is, or it was settled at fewer steps and would run for more now.
    """
    if held == asked and lowered is None:
        return
    raise PolicyError(
        "this draw stands in the ledger otherwise",
        found="settled at fewer steps" if held == asked else "another source, plan or mechanism",
        expected="the draw as it was reserved",
        remedy="give a new draw an id of its own: it is charged as well",
    )


def check_noise(book: Book, run: str, after: int, again: int | None) -> None:
    """Refuse correlated noise that is older than what left the site under it.

    Of a round that is sealed nothing is drawn anew either: what stands after it would be another noise than
    the one that left.

    Args:
        book: Of the ledger.
        run: Of the noise.
        after: The round after which it stands.
        again: A round that may be sealed, since it gives the same bits again; None: none may.

    Raises:
        PolicyError: A later one is sealed.
    """
    later = [sealed for name, sealed, _ in book.seals if name == run and sealed > after and sealed != again]
    if later:
        raise PolicyError(
            "the noise of this run's earlier steps is not that of the last round which left this site",
            found=f"noise after round {after}", expected=f"noise after round {max(later)}",
            remedy="nothing is drawn a second time: the run goes on without this site; a folder that was "
            "restored from a backup joins the next one",
        )  # fmt: skip


def check_open(store: Store, place: Draw, source: int) -> None:
    """Refuse another draw for a stage whose contribution is sealed; the refusal is on record.

    Raises:
        PolicyError: It is sealed.
    """
    run, round, stage, _ = place
    if (run, round, stage) in store.book.seals:
        record(store, "sealed", place, source, None)
        raise PolicyError(
            f"round {round}, stage {stage} of this run is sealed: its contribution stands",
            found="another draw", expected="the draw that was sealed",
            remedy="send the sealed contribution again; nothing is drawn anew for it",
        )  # fmt: skip


def admit(store: Store, found: Refusal | None, place: Draw, source: int) -> None:
    """Raise what was found against a charge, once it is on record.

    Raises:
        BudgetError: Something was.
    """
    if found is not None:
        record(store, found.reason, place, source, found.reached)
        raise found.error


def release(store: Store, source: int, run: str, plan: str, *, happened: bool) -> None:
    """As `Ledger.release_without_privacy`."""
    store.check()
    if store.book.runs.get((source, run), Tally()).released:
        return
    check_run(store.book, run, plan)
    if not happened:
        admit(store, refusal(store.book, source, NoPrivacy(), run), (run, 0, 0, WHOLE_RUN), source)
    store.append(Released, source=source, run=run, plan=plan)


def record(store: Store, reason: Why, place: Draw, source: int | None, reached: float | None) -> None:
    """Write a refusal down, once: a server that asks again and again must not fill the disk."""
    if (reason, place) not in store.book.refusals:
        run, round, stage, draw = place
        store.append(
            Refused, reason=reason, run=run, round=round, stage=stage, draw=draw, source=source,
            reached=reached,
        )  # fmt: skip
