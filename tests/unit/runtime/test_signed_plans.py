"""A plan's folder and its signature: whole or refused, whatever somebody does to a byte of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_plans import toy_plan

from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError, PeerError, StorageError
from wardround.core.packed import Adapter, Layout, TensorSpec, pack
from wardround.runtime.files import save_tensors
from wardround.runtime.plan_folder import INITIAL, PLAN, read_initial, read_plan, write_plan_folder
from wardround.runtime.signed import sign_document
from wardround.runtime.signed_plan import LARGEST_PLAN, read_signed_plan, sign_plan

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(2, 3)), TensorSpec(name="b", shape=(4,))))
INITIAL_ADAPTER: Adapter = pack(LAYOUT, {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4)})
DOCUMENT = SignedPlan(
    plan=toy_plan(layout=LAYOUT, initial=INITIAL_ADAPTER.digest), enrolment=EnrolmentRules(least_sites=3)
)
ENVELOPE = sign_plan(DOCUMENT, KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plan's folder."""
    write_plan_folder(tmp_path / "plan", DOCUMENT, INITIAL_ADAPTER)
    return tmp_path / "plan"


def test_a_signed_plan_comes_back_as_it_was(folder: Path) -> None:
    """Folder and envelope hold the same document, with the same digests, and the adapter's bits."""
    assert read_signed_plan(ENVELOPE, PUBLIC) == read_plan(folder) == DOCUMENT
    assert read_signed_plan(ENVELOPE, PUBLIC).plan.digest == DOCUMENT.plan.digest
    assert read_initial(folder, DOCUMENT.plan).digest == INITIAL_ADAPTER.digest


def test_another_key_and_another_kind_are_refused() -> None:
    """Also where the signature itself is right."""
    other = Ed25519PrivateKey.generate()
    with pytest.raises(PeerError, match="another signer"):
        read_signed_plan(sign_plan(DOCUMENT, other), PUBLIC)
    with pytest.raises(PeerError, match="another kind"):
        read_signed_plan(sign_document("roster", DOCUMENT, KEY), PUBLIC)
    with pytest.raises(PeerError, match="too large"):
        read_signed_plan(ENVELOPE + b" " * LARGEST_PLAN, PUBLIC)


def test_a_signed_text_that_is_no_plan_is_refused() -> None:
    """The consortium's signature does not make an unknown field known."""
    with pytest.raises(PeerError, match="not as it should be"):
        read_signed_plan(sign_document("plan", DOCUMENT.plan, KEY), PUBLIC)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_no_changed_byte_of_an_envelope_passes_as_another_plan(place: int, change: int) -> None:
    """Refused, or read as the very same plan (spaces between the envelope's fields are not signed)."""
    altered = bytearray(ENVELOPE)
    altered[place] ^= change
    try:
        found = read_signed_plan(bytes(altered), PUBLIC)
    except PeerError:
        return
    assert found == DOCUMENT


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_noise_is_no_plan(data: bytes) -> None:
    """Whatever arrives is a PeerError, and a ConfigError where a person wrote it; nothing else is raised."""
    with pytest.raises(PeerError):
        read_signed_plan(data, PUBLIC)
    with pytest.raises(ConfigError):
        SignedPlan.parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    (),
    ("plan",),
    ("enrolment",),
    *(("plan", name) for name in json.loads(DOCUMENT.canonical())["plan"]),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PLACES), JSON, st.sampled_from(["", "name", "options", "layout", "rounds", "least_sites"])
)
def test_a_plan_with_anything_anywhere_is_read_or_refused(
    place: tuple[str, ...], value: object, key: str
) -> None:
    """A value of any kind in any section: a ConfigError, or a document that can be written again."""
    fields = json.loads(DOCUMENT.canonical())
    target = fields
    for name in place[:-1]:
        target = target[name]
    if place and not key:
        target[place[-1]] = value
    else:
        inner = target[place[-1]] if place else target
        if isinstance(inner, dict):
            inner[key] = value
    try:
        document = SignedPlan.parse(json.dumps(fields))
        again = SignedPlan.parse(document.canonical())
    except ConfigError:
        return
    assert again.digest == document.digest


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        (lambda text: text.replace(b'"seed":7', b'"seed":7.0'), "canonical form"),
        (lambda text: text.replace(b'"seed":7', b'"seed": 7'), "canonical form"),
        (lambda text: text.replace(b'"seed":7', b'"seed":9,"seed":7'), "canonical form"),
        (lambda text: text.replace(b'"seed":7', b'"seed":"7"'), "canonical form"),
        (lambda text: text.replace(b'"seed":7', b'"sead":7'), "sead"),
        (lambda text: text[:-40], "faults in the signed plan"),
        (lambda _: b"", "faults in the signed plan"),
        (lambda text: text.replace(b"}\n", b',"x":NaN}\n'), "faults in the signed plan|canonical"),
    ],
)
def test_a_plan_that_somebody_edited_into_another_form_is_refused(
    folder: Path, altered: object, message: str
) -> None:
    """Two texts for one plan, a key twice, an unknown key, half a file."""
    path = folder / PLAN
    path.write_bytes(altered(path.read_bytes()))  # type: ignore[operator]  # a lambda of the table
    with pytest.raises(ConfigError, match=message):
        read_plan(folder)


def test_a_plan_that_is_not_there_or_too_large_is_refused(folder: Path) -> None:
    """Before anything of it is parsed."""
    with pytest.raises(StorageError, match="cannot read"):
        read_plan(folder / "none")
    (folder / PLAN).write_bytes(b" " * (LARGEST_PLAN + 1))
    with pytest.raises(StorageError, match="too large"):
        read_plan(folder)


def test_another_initial_adapter_is_refused(folder: Path) -> None:
    """By its digest, by its shape, by its size, and where the file is damaged or not there."""
    plan = DOCUMENT.plan
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    save_tensors(folder / INITIAL, tensors)
    with pytest.raises(ConfigError, match=plan.adapter.initial_digest):
        read_initial(folder, plan)
    save_tensors(folder / INITIAL, {"a": np.zeros((3, 2), np.float32), "b": np.ones(4, np.float32)})
    with pytest.raises(PeerError, match="wrong shape"):
        read_initial(folder, plan)
    save_tensors(folder / INITIAL, tensors | {"c": np.zeros(10**5, np.float32)})
    with pytest.raises(StorageError, match="larger than the plan's adapter"):
        read_initial(folder, plan)
    (folder / INITIAL).write_bytes(b"no tensors")
    with pytest.raises(StorageError):
        read_initial(folder, plan)
    (folder / INITIAL).unlink()
    with pytest.raises(StorageError, match="cannot read"):
        read_initial(folder, plan)


@pytest.mark.parametrize(
    "tensors",
    [(), (("a", (2, -1)),), (("a", (0,)),), (("a", (2,)), ("a", (2,))), (("a", (2**20, 2**20)),)],
    ids=str,
)
def test_a_layout_that_no_run_carries_allocates_nothing(
    folder: Path, tensors: tuple[tuple[str, tuple[int, ...]], ...]
) -> None:
    """Negative, empty, twice or enormous: refused before a file is opened."""
    layout = Layout(tensors=tuple(TensorSpec(name=name, shape=shape) for name, shape in tensors))
    with pytest.raises(ConfigError, match="layout"):
        read_initial(folder, toy_plan(layout=layout))


def test_a_folder_is_made_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    """One that holds something is left as it is, and no temporary one stays."""
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(StorageError, match="is there already"):
        write_plan_folder(folder, DOCUMENT, INITIAL_ADAPTER)
    assert sorted(path.name for path in folder.iterdir()) == before == [INITIAL, PLAN]
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
