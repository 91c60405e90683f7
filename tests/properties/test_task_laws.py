"""Laws of packing."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.training.encoded_text import EncodedText
from wardround.training.packing import block_causal_mask, first_fit, pack_rows, segment_bounds


def row_of(rng: np.random.Generator, length: int) -> EncodedText:
    """A row with random targets, one at its end."""
    tokens = rng.integers(0, 99, length).astype(np.int32)
    targets = np.where(rng.random(length) < 0.6, tokens, -100).astype(np.int32)
    targets[0] = -100
    targets[-1] = tokens[-1]
    return EncodedText(
        tokens, targets, cut=int(rng.integers(0, 5)), text_bytes=int(rng.integers(0, 99)), example=length
    )


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(2, 20), min_size=1, max_size=25), st.integers(20, 64))
def test_packing_keeps_every_row_whole_and_once(seed: int, lengths: list[int], limit: int) -> None:
    """Bins fit, hold every row exactly once and in one piece, and no two of them would fit into one."""
    rng = np.random.default_rng(seed)
    rows = [row_of(rng, length) for length in lengths]
    bins = pack_rows(rows, limit)
    pieces = [
        (tuple(b.tokens[start:stop].tolist()), tuple(b.targets[start:stop].tolist()))
        for b in bins
        for start, stop in segment_bounds(b)
    ]
    assert sorted(pieces) == sorted((tuple(r.tokens.tolist()), tuple(r.targets.tolist())) for r in rows)
    sizes = [b.tokens.size for b in bins]
    assert all(size <= limit for size in sizes)
    assert all(first + last > limit for first, last in itertools.pairwise(sizes))
    assert sum(b.cut for b in bins) == sum(r.cut for r in rows)
    assert sum(b.text_bytes for b in bins) == sum(r.text_bytes for r in rows)
    assert pack_rows(rows, limit)[0].tokens.tolist() == bins[0].tokens.tolist()


def first_fit_by_looking(lengths: list[int], capacity: int) -> list[int]:
    """The slow twin: look through the bins from the first one on."""
    room: list[int] = []
    places = []
    for length in lengths:
        place = next((index for index, left in enumerate(room) if left >= length), len(room))
        if place == len(room):
            room.append(capacity)
        room[place] -= length
        places.append(place)
    return places


@given(st.lists(st.integers(1, 16), max_size=200), st.integers(16, 40))
def test_first_fit_is_the_one_that_looks_through_all_bins(lengths: list[int], capacity: int) -> None:
    """The same bin for every length, in fewer steps."""
    assert first_fit(lengths, capacity) == first_fit_by_looking(lengths, capacity)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 4)
)
def test_a_query_sees_its_own_row_up_to_itself(batch: list[list[int]], padding: int) -> None:
    """The mask equals its definition, entry by entry; padding sees itself alone."""
    lengths = [sum(row) for row in batch]
    width = max(lengths) + padding
    positions = torch.zeros((len(batch), width), dtype=torch.int64)
    owner = np.full((len(batch), width), -1)
    for line, row in enumerate(batch):
        place = 0
        for index, size in enumerate(row):
            positions[line, place : place + size] = torch.arange(size)
            owner[line, place : place + size] = index
            place += size
    mask = block_causal_mask(positions, torch.tensor(lengths))
    assert mask.shape == (len(batch), 1, width, width)
    for line in range(len(batch)):
        for query in range(width):
            for key in range(width):
                same = owner[line, query] == owner[line, key] >= 0 and key <= query
                assert bool(mask[line, 0, query, key]) == (same or query == key)
