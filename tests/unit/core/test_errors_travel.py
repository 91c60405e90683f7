"""An error that goes from one process to another is the same error."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from wardround.core import errors
from wardround.core.errors import CodedError, TrainingError, UnreadyError, WardroundError


def kinds(kind: type[WardroundError] = WardroundError) -> Iterator[type[WardroundError]]:
    """Every error there is."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


FIRST: dict[type[WardroundError], tuple[Any, ...]] = {
    TrainingError: ("no_rows", "what"), UnreadyError: ("policy", "what"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.__module__ == errors.__name__])
def test_every_error_travels_with_its_words_and_its_code(kind: type[WardroundError]) -> None:
    """Whatever its constructor asks for."""
    made = kind(*FIRST.get(kind, ("what",)), found=3, expected="four", remedy="add one")
    back = pickle.loads(pickle.dumps(made))  # noqa: S301 - made here
    assert type(back) is kind
    assert vars(back) == vars(made)
    assert str(back) == str(made)
    assert back.args == made.args
    assert getattr(back, "code", None) == getattr(made, "code", None)


def test_a_code_of_its_own_travels() -> None:
    """Given to one error and not to its class."""
    made = CodedError("what", code="tokenizer")
    assert pickle.loads(pickle.dumps(made)).code == "tokenizer"  # noqa: S301 - made here
