"""Requests and replies as Flower records, and what a hostile record does: a named error, nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.runtime.flower_codec import (
    LARGEST_MANIFEST,
    addressee,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

LAYOUT = Layout(tensors=(TensorSpec(name="b", shape=(3, 2)), TensorSpec(name="a", shape=(4,))))
COUNTS = Layout(
    tensors=(TensorSpec(name="weight", role="counter"), TensorSpec(name="x", shape=(2,), role="counter"))
)

REQUEST = Request(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward", train=True, evaluate=False, attempt=1,
    cohort_size=5, broadcast=Packed(LAYOUT, np.arange(10, dtype=np.float32)),
)  # fmt: skip
REPLY = Reply(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward", statistics=np.arange(10),
    statistics_layout_digest=LAYOUT.digest, counters=Packed(COUNTS, np.array([4, 5, 6])), local={"loss": 0.5},
)  # fmt: skip


def manifest(records: RecordDict) -> dict[str, Any]:
    """The manifest as a dictionary."""
    read: dict[str, Any] = json.loads(str(records.config_records["manifest"]["json"]))
    return read


def with_manifest(records: RecordDict, fields: Any) -> RecordDict:
    """The same arrays under another manifest."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    return RecordDict({"manifest": ConfigRecord({"json": text}), "arrays": records.array_records["arrays"]})


def with_arrays(records: RecordDict, **arrays: Any) -> RecordDict:
    """The same manifest over other arrays."""
    packed = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return RecordDict({"manifest": records.config_records["manifest"], "arrays": packed})


def test_a_request_comes_back_as_it_was() -> None:
    """Every field and every bit; the size is that of the contents."""
    records, size = encode_request(REQUEST)
    decoded = decode_request(records, LAYOUT)
    np.testing.assert_array_equal(decoded.broadcast.vector, REQUEST.broadcast.vector)
    assert {**vars(decoded), "broadcast": 0} == {**vars(REQUEST), "broadcast": 0}
    assert addressee(records) == ("run/federated", "ward", 0)
    assert 40 < size < 1000


@pytest.mark.parametrize("status", ["ok", "refused", "failed"])
def test_a_reply_comes_back_as_it_was(status: Any) -> None:
    """With a contribution, and without one where there is a reason instead."""
    reply = (
        REPLY if status == "ok" else Reply("r", "d", 1, "ward", status=status, code="no_rows", reason="none")
    )
    decoded = decode_reply(encode_reply(reply)[0], COUNTS)
    for name, value in vars(reply).items():
        found = getattr(decoded, name)
        if name == "counters":
            assert (found is None) == (value is None)
            if value is not None:
                np.testing.assert_array_equal(found.vector, value.vector)
        else:
            np.testing.assert_array_equal(found, value)


BAD_FIELDS: list[dict[str, Any]] = [
    {"protocol": 2}, {"protocol": "1"}, {"round": 0}, {"round": -1}, {"round": 1.5}, {"round": "3"},
    {"stage": 99}, {"attempt": -1},
    {"site": ""}, {"site": "x" * 1000}, {"site": None}, {"layout_digest": "e" * 64},
    {"layout_digest": "x" * 65}, {"train": 1}, {"train": "yes"}, {"evaluate": None}, {"cohort_size": 0},
    {"unknown": 1}, {"plan_digest": 5}, {"run_id": "x" * 300},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_FIELDS, ids=str)
def test_a_malformed_manifest_is_refused(change: dict[str, Any]) -> None:
    """Wrong types, bounds, unknown keys, another layout."""
    records, _ = encode_request(REQUEST)
    with pytest.raises(PeerError):
        decode_request(with_manifest(records, {**manifest(records), **change}), LAYOUT)


@pytest.mark.parametrize("field", sorted(manifest(encode_request(REQUEST)[0])))
def test_a_missing_field_is_refused(field: str) -> None:
    """There are no defaults on the wire."""
    records, _ = encode_request(REQUEST)
    fields = manifest(records)
    del fields[field]
    with pytest.raises(PeerError):
        decode_request(with_manifest(records, fields), LAYOUT)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "7", " " * (LARGEST_MANIFEST + 1), '{"protocol": NaN}', "[" * 5000]
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    """Broken, empty, too large or too deep JSON."""
    records, _ = encode_request(REQUEST)
    with pytest.raises(PeerError):
        decode_request(with_manifest(records, text), LAYOUT)


ARRAYS: dict[str, dict[str, Any]] = {
    "missing": {},
    "other name": {"weights": np.zeros(10, np.float32)},
    "two dimensions": {"broadcast": np.zeros((2, 5), np.float32)},
    "no dimension": {"broadcast": np.float32(1)},
    "float64": {"broadcast": np.zeros(10)},
    "too short": {"broadcast": np.zeros(9, np.float32)},
    "too long": {"broadcast": np.zeros(11, np.float32)},
    "integers": {"broadcast": np.zeros(10, np.int64)},
}


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_a_wrong_array_is_refused(kind: str) -> None:
    """Of another name, shape or type."""
    records, _ = encode_request(REQUEST)
    arrays = {name: np.asarray(array) for name, array in ARRAYS[kind].items()}
    with pytest.raises(PeerError):
        decode_request(with_arrays(records, **arrays), LAYOUT)


def test_an_array_that_only_pickle_could_read_is_refused() -> None:
    """An object array never reaches pickle."""
    records, _ = encode_request(REQUEST)
    evil = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=_object_npy())
    broken = RecordDict(
        {"manifest": records.config_records["manifest"], "arrays": ArrayRecord({"broadcast": evil})}
    )
    with pytest.raises(PeerError, match="cannot be read"):
        decode_request(broken, LAYOUT)


def _object_npy() -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_reply_is_an_error_or_says_something_else(data: st.DataObject) -> None:
    """A byte of the manifest changes: a PeerError, or a reply that differs; never another exception."""
    records, _ = encode_reply(REPLY)
    text = bytearray(str(records.config_records["manifest"]["json"]).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(32, 126).filter(lambda byte: byte != text[place]))
    try:
        decoded = decode_reply(with_manifest(records, text.decode()), COUNTS)
    except PeerError:
        return
    same = {name: value for name, value in vars(decoded).items() if name not in {"statistics", "counters"}}
    assert same != {
        name: value for name, value in vars(REPLY).items() if name not in {"statistics", "counters"}
    }
