"""A row's columns become a sentence; what is empty is left out, what is odd is refused by column name."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.core.errors import ConfigError
from wardround.core.plan import TextTemplate
from wardround.training.template import UnknownCodeError, check_template, render, says_something


def template(*segments: str, **values: dict[str, str]) -> TextTemplate:
    """Segments and value maps."""
    return TextTemplate(segments=segments, values=values)


@pytest.mark.parametrize(
    ("segment", "row", "text"),
    [
        ("{age} years", {"age": "63"}, "63 years"),
        ("{age} years", {"age": 63.0}, "63 years"),
        ("{age} years", {"age": "63.0"}, "63 years"),
        ("{age:.0f} years", {"age": "63.4"}, "63 years"),
        ("{age:.1f} years", {"age": "63"}, "63.0 years"),
        ("{age:d} years", {"age": "63.0"}, "63 years"),
        ("{dose:g}", {"dose": "1.50"}, "1.5"),
        ("{id}", {"id": "007"}, "007"),
        ("{id}", {"id": "1e5"}, "1e5"),
        ("{ward:0>4s}.", {"ward": "7"}, "0007."),
        ("{name:>6}|", {"name": "Ada"}, "Ada|"),
        ("{resting bp} mm", {"resting bp": 120}, "120 mm"),
        ("{{{age}}}", {"age": 1}, "{1}"),
        ("{word}", {"word": "{age.__class__}"}, "{age.__class__}"),
    ],
)
def test_a_segment_shows_its_columns(segment: str, row: dict[str, Any], text: str) -> None:
    """Numbers are formatted whatever type they have, text stays as it stands, and no value is a format."""
    assert render(template(segment), row) == text


def test_a_segment_with_an_empty_column_is_left_out() -> None:
    """None, an absent key, blanks and NaN are empty; a zero is not; literals always stay."""
    found = template("A patient", ", aged {age}", ", {a}-{b}", ".")
    assert render(found, {"age": 0, "a": 1, "b": 2}) == "A patient, aged 0, 1-2."
    for empty in (None, "", "  ", float("nan")):
        assert render(found, {"age": 50, "a": 1, "b": empty}) == "A patient, aged 50."
    assert render(found, {"age": 50}) == "A patient, aged 50."


def test_codes_become_words() -> None:
    """1, 1.0, "1" and "1.0" are one code; the empty word means that the column says nothing."""
    found = template("{sex}", ", scan {thal}", sex={"0": "woman", "1": "man"}, thal={"0": "", "3": "normal"})
    for code in (1, 1.0, "1", "1.0", " 1 ", True):
        assert render(found, {"sex": code, "thal": "0"}) == "man"
    assert render(found, {"sex": 0, "thal": 3.0}) == "woman, scan normal"


@pytest.mark.parametrize("odd", ["2", 1.5, "man", [1], {"a": 1}])
def test_a_code_without_a_word_is_named_by_its_column_alone(odd: Any) -> None:
    """The error holds the column and never the value."""
    with pytest.raises(UnknownCodeError) as caught:
        render(template("{sex}", sex={"0": "woman", "1": "man"}), {"sex": odd})
    assert str(caught.value) == "sex"


@pytest.mark.parametrize("odd", ["old", "inf", "nan", "1_000", [63], {"years": 63}])
def test_a_value_that_its_format_refuses_breaks_the_row(odd: Any) -> None:
    """Text where a number is to be formatted, and values that are no text at all."""
    with pytest.raises(UnknownCodeError, match=r"^age$"):
        render(template("{age:.0f} years"), {"age": odd})


@pytest.mark.parametrize(
    "segment",
    [
        "{age.__class__}",
        "{age[0]}",
        "{}",
        "{0}",
        "{age!r}",
        "{age:{width}}",
        "{age:>999999999}",
        "{age:.100f}",
        "{age",
        "age}",
    ],
)
def test_anything_but_plain_columns_is_refused(segment: str) -> None:
    """No attribute, no index, no position, no conversion, no nested or huge format."""
    with pytest.raises(ConfigError, match="template segment"):
        check_template(template(segment), ["age", "width", "0", ""])
    with pytest.raises(ConfigError, match="template segment"):
        render(template(segment), {"age": 1, "width": 2})


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    """Columns of segments and of value maps alike."""
    with pytest.raises(ConfigError, match=r"(?s)'colour'.*did you mean 'color'"):
        check_template(template("{colour}"), ["color", "age"])
    with pytest.raises(ConfigError, match=r"(?s)'sexx'.*did you mean 'sex'"):
        check_template(template("{sex}", sexx={"1": "man"}), ["sex"])
    check_template(template("{sex} {{literal}}", sex={"1": "man"}), ["sex", "age"])


def test_a_code_that_no_row_can_have_is_refused() -> None:
    """A key such as 1.0 would never be met: codes are compared as 1."""
    with pytest.raises(ConfigError, match=r"(?s)found: 1\.0"):
        check_template(template("{sex}", sex={"1.0": "man"}), ["sex"])


def test_literals_alone_say_nothing() -> None:
    """A row that fills no column of the template is empty, although the literals would give a text."""
    found = template("A patient", ", aged {age}", ", {thal}", thal={"0": "", "3": "normal"})
    assert not says_something(found, {"age": None, "thal": "0"})
    assert says_something(found, {"age": None, "thal": "3"})
    assert says_something(template("always"), {})
