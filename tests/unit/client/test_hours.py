"""Working hours: which moments lie in them, and who notices when they change."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.hours import DAYS, Opening, open_at, read_window
from wardround.client.site_settings import read_site_settings
from wardround.core.errors import ConfigError, StorageError

MONDAY = datetime(2026, 11, 23)  # noqa: DTZ001 - local, as hours are


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A moment of the week."""
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (
            "mon-fri 19:00-06:00",
            [at(0, 19), at(1, 5, 59), at(5, 5, 59)],
            [at(0, 18, 59), at(0, 5), at(5, 6), at(5, 20)],
        ),
        ("sat-sun 00:00-24:00", [at(5, 0), at(6, 23, 59)], [at(4, 23, 59), at(0, 0)]),
        (
            "sun-mon 22:00-02:00",
            [at(6, 22), at(0, 1, 59), at(0, 23), at(1, 1)],
            [at(1, 2), at(1, 22), at(6, 1)],
        ),
        ("wed 08:30-08:31", [at(2, 8, 30)], [at(2, 8, 29), at(2, 8, 31), at(1, 8, 30)]),
    ],
)  # fmt: skip
def test_a_window_holds_its_moments(text: str, inside: list[datetime], outside: list[datetime]) -> None:
    """Over midnight it belongs to the day on which it opens."""
    assert all(open_at([text], moment) for moment in inside)
    assert not any(open_at([text], moment) for moment in outside)


@given(
    st.sampled_from(DAYS), st.sampled_from(DAYS), st.integers(0, 1439), st.integers(1, 1440),
    st.integers(0, 7 * 1440 - 1),
)  # fmt: skip
def test_a_window_is_what_a_list_of_all_its_minutes_is(
    first: str, last: str, begin: int, end: int, minute: int
) -> None:
    """The slow twin."""
    if begin == end:
        return
    days, day = [], DAYS.index(first)
    while True:
        days.append(day)
        if DAYS[day] == last:
            break
        day = (day + 1) % 7
    until = end if end > begin else end + 1440
    minutes = {(day * 1440 + m) % (7 * 1440) for day in days for m in range(begin, until)}
    text = f"{first}-{last} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    assert read_window(text).holds(MONDAY + timedelta(minutes=minute)) == (minute in minutes)


@pytest.mark.parametrize(
    "text",
    [
        "", "mon", "mon 8:00-9:00", "mon 08:00-08:00", "mo 08:00-09:00", "mon 24:00-09:00",
        "mon 08:60-09:00", "mon 08:00-24:01",
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused_where_it_stands(tmp_path: Path, text: str) -> None:
    """By the settings of the site."""
    path = tmp_path / "site.yaml"
    path.write_text(f"models: [{{path: m}}]\nsource: {{path: r.jsonl}}\nhours: ['{text}']\n")
    with pytest.raises(ConfigError, match=r"hours\.0"):
        read_site_settings(path)


def test_changed_hours_are_noticed_within_seconds_and_an_unreadable_file_changes_nothing() -> None:
    """They are not read at each look."""
    clock, read = [0.0], [0]
    hours: list[tuple[str, ...] | None] = [()]

    def windows() -> tuple[str, ...]:
        read[0] += 1
        if hours[0] is None:
            raise StorageError("gone")
        return hours[0]

    opening = Opening(windows, lambda: at(0, 12), lambda: clock[0])
    assert opening()
    hours[0] = ("mon 13:00-14:00",)
    assert opening()
    clock[0] = 5.0
    assert not opening()
    assert read[0] == 2
    hours[0] = None
    clock[0] = 10.0
    assert not opening()
