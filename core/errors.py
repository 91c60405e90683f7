"""Every error that Wardround raises on purpose.

WardroundError
├── ConfigError            what a person wrote: YAML, overrides, a command's arguments (CodedError: two below)
│   ├── DataError          a source, a column mapping, rows, labels
│   └── ModelError         a base model, a tokenizer, adapter targets
├── PeerError              what arrived from the other side is malformed, stale or out of bounds
│   └── QuorumError        too few sites answered for a round to count
├── PolicyError            a site's own rules refuse
├── UnreadyError           a site cannot train an accepted plan with what it has
├── BudgetError            a privacy budget would be overdrawn, or is unknown
├── TrainingError          local training went wrong (a loss that is not finite)
├── StorageError           a file could not be written or does not hold what it should
│   └── RolledBackError    a privacy ledger lacks rows that others have seen
├── UnreachableError       a process that should answer does not
└── InternalError          a broken invariant of ours: please report

A message says what happened, what was found, what was expected and the remedy. It never holds a
value from anybody's data, and never a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WardroundError(Exception):
    """Base of the tree.

    Args:
        what: What went wrong, one sentence.
        found: What was there (names, counts, shapes; no data values).
        expected: What should have been there.
        remedy: What the reader can do now.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.what = what
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        super().__init__(self._text())

    def __reduce__(self) -> tuple[object, ...]:
        """Across processes: as it is, whatever a subclass's constructor asks for."""
        return _again, (type(self), self.args, self.__dict__)

    def _text(self) -> str:
        lines = [self.what]
        for label, value in (
            ("found", self.found),
            ("expected", self.expected),
            ("remedy", self.remedy),
        ):
            if value is not None:
                lines.append(f"  {label}: {value}")
        return "\n".join(lines)


def _again(kind: type[WardroundError], args: tuple[object, ...], state: dict[str, object]) -> WardroundError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(WardroundError):
    """What a person wrote cannot be used as it stands."""

    exit_code = 2


class CodedError(ConfigError):
    """A ConfigError with a short stable identifier that may leave a site, where its words may not.

    Args:
        code: The identifier; None takes the class's own.
        what: As in the base class, like the other arguments.
    """

    code: str = "settings"

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
        code: str | None = None,
    ) -> None:
        self.code = code or self.code
        super().__init__(what, found=found, expected=expected, remedy=remedy)


class DataError(CodedError):
    """A data source, a column mapping or a label is wrong."""

    code = "rows"


class ModelError(CodedError):
    """A base model, tokenizer or adapter setting is wrong."""

    code = "model_absent"


class PeerError(WardroundError):
    """A message from the other side is malformed, stale or out of bounds."""


class QuorumError(PeerError):
    """Too few sites answered for the round to count."""


class PolicyError(WardroundError):
    """The site's own policy refuses."""


class UnreadyError(WardroundError):
    """A site cannot train a plan with what it has; its people read the words, the server gets the code.

    Args:
        code: One of `core/enrolment.py:UNREADY`.
        what: As in the base class, like the other arguments.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.code = code
        super().__init__(what, found=found, expected=expected, remedy=remedy)


class BudgetError(WardroundError):
    """A privacy budget would be overdrawn, or is unknown."""


class TrainingError(WardroundError):
    """Local training went wrong.

    Args:
        code: Short stable identifier that may leave the site, such as ``non_finite_loss``.
        what: As in the base class, like the other arguments.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.code = code
        super().__init__(what, found=found, expected=expected, remedy=remedy)


class StorageError(WardroundError):
    """A file could not be written, or does not hold what it should."""


class RolledBackError(StorageError):
    """A privacy ledger is older than what others have seen of it."""


class UnreachableError(WardroundError):
    """A process that should answer does not: it does not run, or hangs, or the way to it is cut."""

    exit_code = 3


class InternalError(WardroundError):
    """An invariant of ours is broken."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_name(
    kind: str, name: str, known: Iterable[str], error: type[WardroundError] = ConfigError
) -> WardroundError:
    """An error for a name that is not known, which proposes the nearest one that is."""
    names = sorted(known)
    guess = nearest(name, names)
    return error(
        f"unknown {kind} {name!r}",
        expected="one of " + ", ".join(names) if names else "nothing: none is registered",
        remedy=f"did you mean {guess!r}?" if guess else None,
    )
