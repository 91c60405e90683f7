"""Requests and replies as Flower records, and what a hostile record does: a named error, nothing else."""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.runtime import flower_records
from wardround.runtime.flower_codec import (
    addressee,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    request_size,
)
from wardround.runtime.flower_records import LARGEST_MANIFEST, PLAIN, flower_array

LAYOUT = Layout(tensors=(TensorSpec(name="b", shape=(3, 2)), TensorSpec(name="a", shape=(4,))))

REQUEST = Request(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward",
    sums={"training": b"offer of a sum", "evaluation": bytes(range(256))},
    broadcast=Packed(LAYOUT, np.arange(10, dtype=np.float32)), opened=(b"the last sum", b"\0" * 9),
)  # fmt: skip
LATER = Request(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward", sums={"evaluation": b""}, stage=1,
    attempt=2, exchange=4,
)  # fmt: skip
REPLY = Reply(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward",
    sums={"evaluation": b"\0\xff", "training": b""}, attempt=1, exchange=3, local={"loss": 0.5},
)  # fmt: skip


FOLLOWING = replace(REQUEST, broadcast=None, follows="f" * 64)


def manifest(records: RecordDict) -> dict[str, Any]:
    """The manifest as a dictionary."""
    read: dict[str, Any] = json.loads(str(records.config_records["manifest"]["json"]))
    return read


def with_manifest(records: RecordDict, fields: Any) -> RecordDict:
    """The same pieces and arrays under another manifest."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    beside = ConfigRecord({**records.config_records["manifest"], "json": text})
    return RecordDict({"manifest": beside, **records.array_records})


def with_arrays(records: RecordDict, arrays: Mapping[str, Any]) -> RecordDict:
    """The same manifest over other arrays, with nothing beside it."""
    packed = ArrayRecord({name: flower_array(np.asarray(array)) for name, array in arrays.items()})
    bare = ConfigRecord({"json": records.config_records["manifest"]["json"]})
    return RecordDict({"manifest": bare, "arrays": packed})


@pytest.mark.parametrize("request_", [REQUEST, LATER], ids=["with a broadcast", "of a later phase"])
def test_a_request_comes_back_as_it_was(request_: Request) -> None:
    """Every field and every bit; the size is that of the contents."""
    records, size = encode_request(request_)
    decoded = decode_request(records, LAYOUT)
    assert (decoded.broadcast is None) == (request_.broadcast is None)
    if request_.broadcast is not None and decoded.broadcast is not None:
        np.testing.assert_array_equal(decoded.broadcast.vector, request_.broadcast.vector)
        assert decoded.broadcast.layout == LAYOUT
    assert {**vars(decoded), "broadcast": 0} == {**vars(request_), "broadcast": 0}
    assert list(decoded.sums) == list(request_.sums)
    assert addressee(records) == ("run/federated", "ward", request_.stage)
    contents = sum(map(len, request_.sums.values())) + sum(map(len, request_.opened))
    contents += 0 if request_.broadcast is None else request_.broadcast.vector.nbytes
    assert 40 < size - contents < 1000


@pytest.mark.parametrize("status", ["ok", "refused", "failed"])
def test_a_reply_comes_back_as_it_was(status: Any) -> None:
    """With what it adds to sums, and without where there is a reason instead, or beside it."""
    replies = [REPLY] if status == "ok" else [
        Reply("r", "d", 1, "ward", status=status, code="no_rows", reason="none", sums=sums)
        for sums in ({}, {"evaluation": b"scored"})
    ]  # fmt: skip
    for reply in replies:
        decoded = decode_reply(encode_reply(reply)[0])
        assert vars(decoded) == vars(reply)
        assert list(decoded.sums) == list(reply.sums)
        assert decoded.size == sum(map(len, reply.sums.values()))


def test_what_is_one_sites_own_stands_beside_the_manifest_and_the_rest_is_shared() -> None:
    """Flower moves object by object: three for a message, three more an array, which all sites share."""
    first, second = (encode_request(replace(REQUEST, site=site))[0] for site in ("ward", "theatre"))
    found = {name: (array.dtype, array.shape) for name, array in first.array_records["arrays"].items()}
    assert found == {
        "broadcast": ("float32", (10,)), "opened.0": ("uint8", (12,)), "opened.1": ("uint8", (9,))
    }  # fmt: skip
    assert set(first.config_records["manifest"]) == {"json", "sum.training", "sum.evaluation"}
    assert first["arrays"].object_id == second["arrays"].object_id
    assert first["manifest"].object_id != second["manifest"].object_id
    for records in (encode_request(LATER)[0], encode_reply(REPLY)[0]):
        assert set(get_all_nested_objects(records)) == {records.object_id, records["manifest"].object_id}


@pytest.mark.parametrize("request_", [REQUEST, LATER])
def test_the_size_of_a_request_is_known_without_its_records(request_: Request) -> None:
    """To the byte."""
    assert request_size(request_) == encode_request(request_)[1]


def test_a_large_sum_travels_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make one object too large is an array, which Flower cuts."""
    monkeypatch.setattr(flower_records, "BESIDE", 300)
    reply = replace(REPLY, sums={"evaluation": bytes(200), "training": bytes(200)})
    records, size = encode_reply(reply)
    assert set(records.config_records["manifest"]) == {"json", "sum.evaluation"}
    assert set(records.array_records["arrays"]) == {"sum.training"}
    assert vars(decode_reply(records)) == vars(reply)
    assert size == len(str(records.config_records["manifest"]["json"])) + 400


@pytest.mark.parametrize("value", ["text", 7, 1.5, True, [b"a", b"b"], []])
def test_a_piece_that_is_no_bytes_is_not_there(value: Any) -> None:
    """Whatever else a record may hold."""
    records, _ = encode_reply(REPLY)
    beside = ConfigRecord({**records.config_records["manifest"], "sum.training": value})
    with pytest.raises(PeerError, match="lacks"):
        decode_reply(RecordDict({"manifest": beside}))


BAD_FIELDS: list[dict[str, Any]] = [
    {"protocol": 4}, {"protocol": 6}, {"protocol": "5"}, {"round": -1}, {"round": 1.5},
    {"round": "3"}, {"stage": 99}, {"stage": -1}, {"attempt": -1}, {"exchange": -1}, {"exchange": 99},
    {"exchange": "0"}, {"site": ""}, {"site": "x" * 1000}, {"site": None}, {"layout_digest": "e" * 64},
    {"layout_digest": "x" * 65}, {"sums": "training"}, {"sums": ["training", "other"]},
    {"sums": ["training", "evaluation", "training"]}, {"sums": ["Training"]}, {"sums": ["../etc"]},
    {"sums": [""]}, {"sums": [7]}, {"sums": None}, {"opened": -1}, {"opened": 3}, {"opened": 99},
    {"unknown": 1}, {"train": True}, {"cohort_size": 4}, {"plan_digest": 5}, {"run_id": "x" * 300},
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


WHOLE: dict[str, Any] = {
    "broadcast": np.arange(10, dtype=np.float32),
    "sum.training": np.frombuffer(REQUEST.sums["training"], np.uint8),
    "sum.evaluation": np.frombuffer(REQUEST.sums["evaluation"], np.uint8),
    "opened.0": np.frombuffer(REQUEST.opened[0], np.uint8),
    "opened.1": np.frombuffer(REQUEST.opened[1], np.uint8),
}
ARRAYS: dict[str, dict[str, Any]] = {
    "missing": {"broadcast": None},
    "other name": {"broadcast": None, "weights": np.zeros(10, np.float32)},
    "two dimensions": {"broadcast": np.zeros((2, 5), np.float32)},
    "no dimension": {"broadcast": np.float32(1)},
    "float64": {"broadcast": np.zeros(10)},
    "too short": {"broadcast": np.zeros(9, np.float32)},
    "too long": {"broadcast": np.zeros(11, np.float32)},
    "integers": {"broadcast": np.zeros(10, np.int64)},
    "a sum is missing": {"sum.training": None},
    "a sum of wide integers": {"sum.training": np.zeros(4, np.int64)},
    "a sum of signed bytes": {"sum.training": np.zeros(4, np.int8)},
    "a sum of two dimensions": {"sum.evaluation": np.zeros((2, 2), np.uint8)},
    "a sum without dimension": {"sum.evaluation": np.uint8(1)},
    "an opened sum is missing": {"opened.1": None},
    "an opened sum of floats": {"opened.0": np.zeros(4)},
}


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_a_wrong_array_is_refused(kind: str) -> None:
    """Of another name, shape or type; all others are as they were."""
    records, _ = encode_request(REQUEST)
    decode_request(with_arrays(records, WHOLE), LAYOUT)
    arrays = {name: array for name, array in (WHOLE | ARRAYS[kind]).items() if array is not None}
    with pytest.raises(PeerError, match=r"array|packed vector|broadcast|message has the wrong type"):
        decode_request(with_arrays(records, arrays), LAYOUT)


def test_an_array_that_only_pickle_could_read_is_refused() -> None:
    """An object array never reaches pickle."""
    records, _ = encode_request(REQUEST)
    bare = with_arrays(records, WHOLE).config_records["manifest"]
    whole = {name: flower_array(array) for name, array in WHOLE.items()}
    for dtype, stype in itertools.product(("object", "float32"), ("numpy.ndarray", PLAIN)):
        if (dtype, stype) == ("float32", PLAIN):
            continue
        evil = Array(dtype=dtype, shape=(1,), stype=stype, data=_object_npy())
        for name in ("broadcast", "sum.training", "opened.0"):
            arrays = ArrayRecord({**whole, name: evil})
            broken = RecordDict({"manifest": bare, "arrays": arrays})
            with pytest.raises(PeerError, match="cannot be read"):
                decode_request(broken, LAYOUT)


@pytest.mark.parametrize("shape", [(9,), (11,), (-10,), (2**62,), (2, 5), (10, 1), ()])
def test_a_shape_that_is_not_that_of_the_bytes_is_refused(shape: tuple[int, ...]) -> None:
    """Nothing is reserved for what is not there."""
    records, _ = encode_request(REQUEST)
    data = np.zeros(10, np.float32).tobytes()
    lying = Array(dtype="float32", shape=shape, stype=PLAIN, data=data)
    whole = {name: flower_array(array) for name, array in WHOLE.items()}
    arrays = ArrayRecord({**whole, "broadcast": lying})
    with pytest.raises(PeerError, match=r"array 'broadcast'"):
        decode_request(RecordDict({"manifest": records.config_records["manifest"], "arrays": arrays}), LAYOUT)


def test_decoding_never_parses_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites decode in threads, and the parser's own count of its depth is shared between them."""
    records, _ = encode_request(REQUEST)
    monkeypatch.setattr(ast, "literal_eval", None)
    monkeypatch.setattr(ast, "parse", None)
    assert decode_request(records, LAYOUT).sums == REQUEST.sums


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
        decoded = decode_reply(with_manifest(records, text.decode()))
    except PeerError:
        return
    assert vars(decoded) != vars(REPLY)


@pytest.mark.parametrize("sums", [{"Training": b""}, {"a": b"", "b": b"", "c": b""}, {"x" * 21: b""}])
def test_sums_under_names_that_no_sum_has_are_not_read(sums: dict[str, bytes]) -> None:
    """More of them, other letters, longer ones; which sums there are is for the round loop to say."""
    records, _ = encode_reply(REPLY)
    fields = {**manifest(records), "sums": list(sums)}
    arrays = {f"sum.{name}": np.frombuffer(message, np.uint8) for name, message in sums.items()}
    with pytest.raises(PeerError, match="sums"):
        decode_reply(with_manifest(with_arrays(records, arrays), fields))


def test_a_digest_in_place_of_a_broadcast_travels_alone() -> None:
    """Without the broadcast's bytes; with both it is said which of them counts: none."""
    records, size = encode_request(FOLLOWING)
    assert decode_request(records, LAYOUT) == FOLLOWING
    assert size == encode_request(REQUEST)[1] - 4 * LAYOUT.size
    whole, _ = encode_request(REQUEST)
    both = with_manifest(whole, manifest(whole) | {"follows": "f" * 64})
    with pytest.raises(PeerError, match="a digest in its place"):
        decode_request(both, LAYOUT)
