"""Kinds of messages and documents for tests/unit/test_fuzzed_inputs.py: examples, and who reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from fuzz import KINDS, Made, Read, kind
from members import NOW, roster_document
from toy_plans import toy_plan

from wardround.core.counting import TRAINING_LAYOUT
from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.messages import Reply, Request
from wardround.core.packed import Layout, Packed, TensorSpec, pack
from wardround.core.plan import TrainingPlan
from wardround.core.plan_offers import PlanAnswer, PlanOffer, Reason
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.messages import (
    Advertised,
    Advertisement,
    Confirmation,
    Confirmed,
    Dealing,
    Delivery,
    MaskedInput,
    Survivors,
    Unmasking,
    decode,
    encode,
    kind_of,
)  # fmt: skip
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.sums.opened import opened, read_opened
from wardround.runtime.certificates import (
    certificate_pem,
    new_authority,
)
from wardround.runtime.flower_codec import (
    addressee,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from wardround.runtime.membership import (
    INVITATION,
    JOIN,
    NOTICE,
    ROTATION,
    Invitation,
    JoinRequest,
    RotationRequest,
    ServerNotice,
    read_invitation,
    read_join,
    read_notice,
    read_rotation,
    sign_join,
    sign_rotation,
)  # fmt: skip
from wardround.runtime.offer_codec import decode_answer, decode_offer, encode_answer, encode_offer
from wardround.runtime.result_record import KIND, LARGEST, ResultRecord
from wardround.runtime.roster import ROSTER, SERVER, ServerCertificate, read_certificate, read_roster
from wardround.runtime.signed import FORMAT, read_document, sign_document, signed_bytes
from wardround.runtime.signed_plan import read_signed_plan, sign_plan
from wardround.runtime.signed_requests import HEADER, ROUTES, check_request, sign_request
from wardround.runtime.small_files import transport_point
from wardround.server.member_routes import member_routes
from wardround.server.relay_journal import begin, offered, restore

KEY, OLD, NEW = (Ed25519PrivateKey.from_private_bytes(bytes([i] * 32)) for i in (1, 2, 3))
PUBLIC, OLD_HEX, NEW_HEX = (key.public_key().public_bytes_raw() for key in (KEY, OLD, NEW))
LAYOUT = Layout(tensors=(TensorSpec(name="b", shape=(3, 2)), TensorSpec(name="a", shape=(4,))))
ADAPTER = pack(LAYOUT, {"b": np.arange(6.0).reshape(3, 2), "a": np.ones(4)})
RULES = EnrolmentRules(least_sites=3)
PLANNED = SignedPlan(plan=toy_plan(layout=LAYOUT, initial=ADAPTER.digest), enrolment=RULES)
BETWEEN = b"\x00--\x00"
PIECE = "piece"
"""In place of an array's type, of bytes that stand beside the manifest."""

# ---- messages through Flower


def as_bytes(records: RecordDict) -> bytes:
    """A manifest, the pieces beside it and arrays, one after the other."""
    beside = dict(records.config_records["manifest"])
    parts = [str(beside.pop("json")).encode()]
    for name, piece in beside.items():
        assert isinstance(piece, bytes)
        parts.append(f"{name} {PIECE} bytes\n".encode() + piece)
    for name, array in records.array_records.get("arrays", ArrayRecord()).items():
        sides = ",".join(map(str, array.shape))
        parts.append(f"{name} {array.dtype} {array.stype} {sides}\n".encode() + array.data)
    return BETWEEN.join(parts)


def as_records(data: bytes) -> RecordDict:
    """The records of such bytes, whatever they are."""
    text, *parts = data.split(BETWEEN)
    arrays, beside = {}, ConfigRecord()
    for part in parts:
        head, _, content = part.partition(b"\n")
        name, dtype, stype, sides, *_ = [*head.decode("utf-8", "replace").split(" "), "", "", "", ""]
        if dtype == PIECE:
            beside[name] = content if stype == "bytes" else [len(content)] if "b" in stype else stype
            continue
        shape = tuple(
            int(side) for side in sides.split(",") if side.isascii() and side.isdigit() and len(side) < 20
        )
        arrays[name] = FlowerArray(dtype=dtype, shape=shape, stype=stype, data=content)
    beside["json"] = text.decode("utf-8", "replace")
    return RecordDict({"manifest": beside, "arrays": ArrayRecord(arrays)})


REQUEST = Request(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward",
    sums={"training": b"offer of a sum", "evaluation": bytes(range(256))},
    broadcast=Packed(LAYOUT, np.arange(10, dtype=np.float32)), opened=(b"the last sum", b"\0" * 9),
)  # fmt: skip
REPLY = Reply(
    run_id="run/federated", plan_digest="d" * 64, round=3, site="ward",
    sums={"evaluation": b"\0\xff", "training": b""}, attempt=1, exchange=3, local={"loss": 0.5},
)  # fmt: skip


@kind("request of a round")
def _request(_: Path, __: Any) -> Made:
    def read(data: bytes) -> None:
        records = as_records(data)
        addressee(records)
        decode_request(records, LAYOUT)

    return [as_bytes(encode_request(REQUEST)[0])], read


@kind("reply of a site")
def _reply(_: Path, __: Any) -> Made:
    return [as_bytes(encode_reply(REPLY)[0])], lambda data: decode_reply(as_records(data))


@kind("offer of a plan")
def _offer(_: Path, __: Any) -> Made:
    offer = PlanOffer("run1", "ward", b"a plan", b"a certificate", bytes(32))
    return [as_bytes(encode_offer(offer)[0])], lambda data: decode_offer(as_records(data))


@kind("answer to a plan")
def _answer(_: Path, __: Any) -> Made:
    reasons = (Reason("too_few_rows", "12 rows are not enough"),)
    answers = [
        PlanAnswer("run1", "ward", "refused", reasons, "not_enough", None),
        PlanAnswer("run1", "ward", "accepted", (), "enough", 60.0),
    ]
    return [as_bytes(encode_answer(answer)[0]) for answer in answers], lambda data: decode_answer(
        as_records(data)
    )


# ---- signed documents: the envelope, and any text under the right signature


def again(of: str, key: Ed25519PrivateKey) -> Callable[[bytes], bytes]:
    """Signs any text."""

    def envelope(data: bytes) -> bytes:
        text = data.decode("utf-8", "replace")
        signature = key.sign(signed_bytes(of, text)).hex()
        signer = key.public_key().public_bytes_raw().hex()
        fields = {"format": FORMAT, "kind": of, "document": text, "signer": signer, "signature": signature}
        return json.dumps(fields).encode()

    return envelope


_, AUTHORITY = new_authority("north", NOW)
CA = certificate_pem(AUTHORITY)
SIGNED_ROSTER = sign_document(ROSTER, roster_document("aachen", "bonn", consortium="north"), KEY)
SERVERS = ServerCertificate(
    consortium="north",
    identity=NEW_HEX.hex(),
    address="127.0.0.1:1",
    issued=NOW,
    expires=NOW.replace(year=2027),
)
SIGNED_SERVER = sign_document(SERVER, SERVERS, KEY)
TRANSPORT = ec.generate_private_key(ec.SECP384R1())
OWN_KEYS = {"identity": NEW_HEX.hex(), "transport": transport_point(TRANSPORT.public_key())}
RESULT = ResultRecord(
    run_id="run1", plan="a" * 64, roster="b" * 64, sites=("aachen", "bonn"), reason="completed",
    metric="loss", scores=((1, 0.5), (2, 0.25)), released_round=2, released="c" * 64,
    last_round=2, last="c" * 64,
)  # fmt: skip
SIGNED: dict[str, tuple[bytes, Ed25519PrivateKey, Read]] = {
    ROSTER: (SIGNED_ROSTER, KEY, lambda data: read_roster(data, PUBLIC)),
    SERVER: (SIGNED_SERVER, KEY, lambda data: read_certificate(data, PUBLIC)),
    INVITATION: (
        sign_document(
            INVITATION,
            Invitation(
                consortium="north", key=PUBLIC.hex(), address="127.0.0.1:1", ca=CA.decode(),
                certificate=SIGNED_SERVER.decode(), roster=SIGNED_ROSTER.decode(), site="bonn",
                nonce="0" * 64, issued=NOW, expires=NOW.replace(year=2027),
            ), KEY,
        ), KEY, lambda data: read_invitation(data, NOW),
    ),
    NOTICE: (
        sign_document(
            NOTICE, ServerNotice(consortium="north", ca=CA.decode(), certificate=SIGNED_SERVER.decode()), KEY
        ), KEY, lambda data: read_notice(data, PUBLIC),
    ),
    JOIN: (
        sign_join(
            JoinRequest(consortium=PUBLIC.hex(), site="bonn", nonce="0" * 64, issued=NOW, **OWN_KEYS),
            NEW, TRANSPORT,
        ), NEW, read_join,
    ),
    ROTATION: (
        sign_rotation(
            RotationRequest(
                consortium=PUBLIC.hex(), site="bonn", former=OLD_HEX.hex(), issued=NOW, **OWN_KEYS
            ), OLD, NEW, TRANSPORT,
        ), OLD, read_rotation,
    ),
    "plan": (sign_plan(PLANNED, KEY), KEY, lambda data: read_signed_plan(data, PUBLIC)),
    KIND: (
        sign_document(KIND, RESULT, KEY), KEY,
        lambda data: read_document(data, KIND, ResultRecord, signer=PUBLIC, largest=LARGEST),
    ),
}  # fmt: skip


def _signed(of: str) -> None:
    whole, key, read = SIGNED[of]
    text = json.loads(whole)["document"].encode()
    KINDS[f"envelope of a {of}"] = lambda _, __: ([whole], read)
    KINDS[f"{of} under a right signature"] = lambda _, __: ([text], lambda data: read(again(of, key)(data)))


for name in SIGNED:
    _signed(name)


@kind("plan")
def _plan(_: Path, __: Any) -> Made:
    plans: tuple[Any, ...] = (SignedPlan, TrainingPlan)
    examples = [b"\0" + PLANNED.canonical(), b"\1" + PLANNED.plan.canonical()]
    return examples, lambda data: plans[bool(data[:1] and data[0] % 2)].parse(data[1:])


@kind("signed question of a member")
def _question(_: Path, __: Any) -> Made:
    signer = KeySigner(NEW)
    roster = Roster({"zürich, ost": signer.public})
    header = sign_request(signer, "zürich, ost", ROUTES + "/roster", 1e9)
    return [header.encode()], lambda data: check_request(
        data.decode("utf-8", "replace"), ROUTES + "/roster", roster, 1e9
    )


@kind("path and header of a member's question")
def _route(folder: Path, _: Any) -> Made:
    signer = KeySigner(NEW)
    (folder / "roster.json").write_bytes(b"the roster")
    app = member_routes(lambda: Roster({"ward": signer.public}), folder / "roster.json", folder, lambda: 1e9)

    def read(data: bytes) -> None:
        path, _, header = data.partition(b"\n")
        said: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                said.append(message["status"])

        scope = {
            "type": "http", "method": "GET", "path": path.decode("utf-8", "replace"), "raw_path": path,
            "query_string": b"", "headers": [(HEADER.encode(), header)], "scheme": "https", "root_path": "",
        }  # fmt: skip
        asyncio.run(app(scope, receive, send))
        assert said[0] in {200, 307, 401, 404}

    whole = f"{ROUTES}/results/run1/result.signed.json"
    return [
        f"{path}\n{sign_request(signer, 'ward', path, 1e9)}".encode() for path in (whole, ROUTES + "/roster")
    ], read


# ---- secure aggregation


def _messages(consortium: Any) -> dict[str, tuple[list[bytes], type, Any]]:
    group = consortium(5)
    offer = group.offer()
    relay, advertised = group.to_advertised(offer)
    found: dict[str, list[Any]] = {
        "Advertised": [advertised],
        "Advertisement": list(advertised.advertisements),
    }
    for site in group.names:
        found.setdefault("Dealing", []).append(group.sites[site].deal(advertised))
        relay.take_dealing(found["Dealing"][-1])
    for site, delivery in relay.deliveries().items():
        found.setdefault("Delivery", []).append(delivery)
        masked = group.sites[site].mask(delivery, *group.inputs(offer, site))
        found.setdefault("MaskedInput", []).append(masked)
        relay.take_masked(masked)
    survivors = relay.survivors()
    found["Survivors"] = [survivors]
    for site in survivors.sites:
        found.setdefault("Confirmation", []).append(group.sites[site].confirm(survivors))
        relay.take_confirmation(found["Confirmation"][-1])
    confirmed = relay.confirmed()
    found["Confirmed"] = [confirmed]
    found["Unmasking"] = [group.sites[site].unmask(confirmed) for site in survivors.sites]
    found["SignedOffer"] = [SignedOffer.by(group.server, offer)]
    models: tuple[type, ...] = (
        Advertised, Advertisement, Dealing, Delivery, MaskedInput, Survivors, Confirmation, Confirmed,
        Unmasking, SignedOffer,
    )  # fmt: skip
    return {
        model.__name__: ([encode(message) for message in found[model.__name__]], model, offer)
        for model in models
    }


@kind("message of secure aggregation")
def _secure(_: Path, consortium: Any) -> Made:
    found = _messages(consortium)
    models = [(model, offer) for _, model, offer in found.values()]
    examples = [bytes([place]) + data for place, (datas, _, _) in enumerate(found.values()) for data in datas]

    def read(data: bytes) -> None:
        kind_of(data)
        model, offer = models[data[0] % len(models)] if data else models[0]
        decode(data[1:], model, offer)

    return examples, read


@kind("opened sum")
def _opened(_: Path, consortium: Any) -> Made:
    group = consortium(5)
    total = group.run(group.offer(coordinates=LAYOUT.size, counters=TRAINING_LAYOUT.size))
    return [opened(total, round=1, stage=0, cohort=5, bits=16)], lambda data: read_opened(data, LAYOUT, 16)


@kind("journal of a relay")
def _relay(folder: Path, consortium: Any) -> Made:
    group = consortium(5)
    offer = group.offer()
    path = folder / "relay"
    journal = begin(path, SignedOffer.by(group.server, offer), Relay(offer, group.roster))
    examples = [path.read_bytes()]
    _, advertised = group.to_advertised(offer)
    for advertisement in advertised.advertisements:
        journal.accept(advertisement)
    journal.close()
    examples.append(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        offered(path)
        restore(path, Relay(offer, group.roster))

    return examples, read
