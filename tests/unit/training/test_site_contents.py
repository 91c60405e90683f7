"""What a site's units are known by beside their ids: a digest of what their rows say."""

from __future__ import annotations

from wardround.training.examples import Example
from wardround.training.site_rows import contents_of


def rows(**units: list[str]) -> list[Example]:
    """Texts of units."""
    texts = [(unit, text) for unit, found in units.items() for text in found]
    return [
        Example(number, {"text": text}, id=f"{unit}/{number}", unit=unit)
        for number, (unit, text) in enumerate(texts)
    ]


def test_it_depends_on_what_the_rows_say_alone() -> None:
    """Not on their order, the row's id and number, or the unit's name."""
    found = contents_of(rows(ann=["one", "two"], bob=["three"]))
    assert list(found) == ["ann", "bob"]
    assert all(len(bytes.fromhex(value)) == 32 for value in found.values())
    again = contents_of(reversed(rows(x=["three"], y=["two", "one"])))
    assert again == {"x": found["bob"], "y": found["ann"]}


def test_other_rows_one_more_or_one_twice_are_another_content() -> None:
    """Each row counts as often as it is there."""
    texts = [["one"], ["one", "two"], ["one", "one"], ["two", "two"], []]
    values = [contents_of(rows(ann=found)).get("ann") for found in texts]
    assert len(set(values)) == len(texts)


def test_what_several_units_say_tells_nobody_apart() -> None:
    """It is left out of all of them."""
    assert list(contents_of(rows(ann=["standard"], bob=["standard"], cyd=["own"]))) == ["cyd"]
