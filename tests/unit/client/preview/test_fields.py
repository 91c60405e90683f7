"""Every field of every message that leaves a site is listed with what it is; a new one fails here."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest
from pydantic import BaseModel

from wardround.client import round as handler
from wardround.client import work
from wardround.client.preview.commands import fields_text
from wardround.client.preview.fields import CLAIMS, CODES, FIELDS, Claim, what_is
from wardround.core import messages as values
from wardround.core.counting import TRAINING_LAYOUT
from wardround.core.messages import Reply, is_duration
from wardround.core.plan_offers import PlanAnswer
from wardround.privacy.sealed import Header
from wardround.privacy.secagg import draw
from wardround.privacy.secagg.messages import Box, Message
from wardround.privacy.sums.contract import GROUPS, SUMS
from wardround.runtime import flower_codec, offer_codec
from wardround.runtime.flower_records import flower_array
from wardround.runtime.signed_requests import _FORM

ROOT = Path(__file__).resolve().parents[4]

OURS: dict[str, type[BaseModel]] = {
    "answer": offer_codec._Answer,
    "reason": offer_codec._Reason,
    "reply": flower_codec._ReplyManifest,
    "box": Box,
    "sealed": Header,
}
FLOWERS: dict[str, Any] = {
    "announcement": PushMessagesRequest,
    "message": FlowerMessage,
    "metadata": Metadata,
    "error": Error,
    "tree": ObjectTree,
    "piece": PushObjectRequest,
}
ABOUT_ALL_OF_IT = {"pieces", "local", "counters", "array", "question"}


def spoken() -> dict[str, type[Message]]:
    """Every message that a site says in a sum or in the draw of the groups, by its kind."""
    assert draw.Committed in Message.__subclasses__()
    return {kind.KIND: kind for kind in Message.__subclasses__()}


@pytest.mark.parametrize(("name", "kind"), [*OURS.items(), *spoken().items()])
def test_every_field_of_ours_is_listed(name: str, kind: type[BaseModel]) -> None:
    """And no other."""
    assert set(FIELDS[name]) == set(kind.model_fields)


@pytest.mark.parametrize(("name", "kind"), FLOWERS.items())
def test_every_field_of_flowers_is_listed(name: str, kind: Any) -> None:
    """And no other, in the version that is installed."""
    assert set(FIELDS[name]) == {field.name for field in kind.DESCRIPTOR.fields}


def test_no_message_is_forgotten() -> None:
    """Nor listed that there is not."""
    assert set(FIELDS) == set(OURS) | set(FLOWERS) | set(spoken()) | ABOUT_ALL_OF_IT
    assert all(what for fields in FIELDS.values() for what in fields.values())


def test_values_and_manifests_have_the_same_fields() -> None:
    """What a site decides to say is what its manifest says, beside what the form adds."""
    assert {field.name for field in _fields(PlanAnswer)} | {"protocol"} == set(FIELDS["answer"])
    form = {"protocol", "layout_digest"}
    assert {field.name for field in _fields(Reply)} | form == set(FIELDS["reply"])


def test_pieces_counters_arrays_and_questions_are_listed() -> None:
    """Each from where it is made."""
    assert set(FIELDS["pieces"]) == {flower_codec.SUM + name for name in (*SUMS, GROUPS)}
    assert {spec.name for spec in TRAINING_LAYOUT.tensors} | {"*"} == set(FIELDS["counters"])
    array = flower_array(values_of(3))
    head = array.deflate().partition(b"\0")[2]
    assert set(FIELDS["array"]) == set(ast.literal_eval(head.decode()))
    asked = {name for name in ("site", "time", "signature") if f"{name}=" in _FORM.pattern}
    assert set(FIELDS["question"]) == asked | {"path"}
    assert _FORM.pattern.count("=(") == len(asked)


def test_every_figure_of_a_sites_own_is_listed() -> None:
    """Whatever the code that makes them calls them: they leave in the clear."""
    found = set(_figures(ast.parse(inspect.getsource(work)))) | set(
        _figures(ast.parse(inspect.getsource(handler)))
    )
    shown_by_simulations = {name for name in found if name.startswith("private.")}
    assert {"train.loss", "validation.", values.SECONDS, values.SPENT} <= found
    for name in found - shown_by_simulations:
        assert what_is("local", name), name
    for name in FIELDS["local"]:
        made = name.removesuffix("*")
        assert made in found or is_duration(made.removesuffix(".")), f"{name} is listed, and nothing makes it"


def _figures(tree: ast.AST) -> Iterable[str]:
    """Keys that are written into a dictionary called `local`."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id="local"), slice=key)]):
                yield _name(key)
            case ast.AugAssign(target=ast.Name(id="local"), value=ast.Dict(keys=keys)):
                yield from (_name(key) for key in keys if key is not None)
            case ast.AugAssign(target=ast.Name(id="local"), value=ast.DictComp(key=key)):
                yield _name(key)
            case ast.AugAssign(target=ast.Name(id="local"), value=ast.Call(func=ast.Name(id=name))):
                assert name == "private_figures", "figures that are made elsewhere: list them here"


def _name(key: ast.expr) -> str:
    match key:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return text
        case ast.Name(id=name):
            return str(getattr(values, name))
    raise AssertionError(f"the name of a figure cannot be read: {ast.dump(key)}")


def _fields(kind: Any) -> Iterable[Any]:
    return dataclasses.fields(kind)


def values_of(count: int) -> Any:
    """An array."""
    return np.zeros(count, dtype=np.uint8)


def test_every_field_has_its_class_in_a_private_run() -> None:
    """A constant, noised and charged, of validation rows, or outside of the claim: one of them each."""
    assert {name: set(fields) for name, fields in CLAIMS.items()} == {
        name: set(fields) for name, fields in FIELDS.items()
    }


def test_what_is_outside_of_the_claim_is_on_the_page() -> None:
    """By name, with a reason; and nothing else is there."""
    outside = {
        f"{message}.{name}" for message, fields in CLAIMS.items() for name in fields
        if fields[name] is Claim.OUTSIDE
    }  # fmt: skip
    outside |= {f"code {code}" for code, (claim, _) in CODES.items() if claim is Claim.OUTSIDE}
    page = (ROOT / "docs" / "what-leaves.md").read_text(encoding="utf-8")
    section = page.partition("## Under differential privacy")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall("`([^`]+)`", row)} == outside


def test_people_are_shown_the_classes_of_a_private_plan() -> None:
    """Field by field, and the codes; of another plan there is no claim."""
    text = "\n".join(fields_text(private=True))
    assert "  coordinates: the update as integers" in text
    assert text.count("[noised and charged]") >= 4
    assert "  out_of_memory: made-up rows" in text
    assert "[" not in "\n".join(fields_text(private=False))


def test_every_code_of_a_reply_has_its_class() -> None:
    """Whatever is raised as a TrainingError, or is told of another error."""
    found = {"", handler.INTERNAL, values.BEHIND, *(code for _, _, code in handler.CODES)}
    for room in ("core", "privacy", "strategies", "training", "client"):
        for file in (ROOT / room).rglob("*.py"):
            if not {"audit", "doctor"} & set(file.parts):  # no part of a round
                found |= set(_codes(ast.parse(file.read_text(encoding="utf-8"))))
    assert found == set(CODES)


def _codes(tree: ast.AST) -> Iterable[str]:
    """First arguments of `TrainingError(…)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="TrainingError"), args=[ast.Constant(value=str(code)), *_]):
                yield code
            case ast.Call(func=ast.Name(id="TrainingError")):
                raise AssertionError(f"a code that cannot be read: {ast.dump(node)}")
