"""Every field of every message that leaves a site: what it is, and what it tells of a patient's rows.

`tests/unit/client/preview/test_fields.py` compares this with the classes that are sent: a field that is new,
in our messages or in Flower's, fails it until somebody has said here what it is, and of which class in a run
in which the site trains privately. So does a status code that is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

_SITE: Final = "the site's name"
_SIGNATURE: Final = "of the site's identity key"
_PLACE: Final = "where the reply belongs, as in the request"
_TRANSCRIPT: Final = "digest of what all sites have said so far"

FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "answer": {
        "protocol": "number of the protocol of offers",
        "version": "of Wardround",
        "run_id": "of the run, as in the offer",
        "site": _SITE,
        "verdict": "accepted, refused or waiting",
        "reasons": "why not: codes and sentences without data",
        "rows": "whether there are rows for the plan's batches; unsaid unless site.yaml has tell_rows",
        "seconds_a_round": "how long a round may take, rounded up; null unless site.yaml has tell_seconds",
    },
    "reason": {"code": "stable code", "text": "a sentence without data"},
    "reply": {
        "protocol": "number of the protocol of rounds",
        "run_id": _PLACE,
        "plan_digest": "of the plan that this site accepted",
        "round": _PLACE,
        "stage": _PLACE,
        "attempt": _PLACE,
        "exchange": _PLACE,
        "site": _SITE,
        "layout_digest": "empty in a reply",
        "sums": "names of the sums that the pieces belong to",
        "status": "ok, refused or failed",
        "code": "stable code of what went wrong",
        "reason": "a sentence without data, or the kind of an exception",
        "local": "this site's own figures, below",
    },
    "local": {
        "validation.*": "score of the broadcast adapter on its validation rows, where its policy says so",
        "train.loss": "mean loss of the local round, likewise; not under differential privacy",
        "train.steps": "steps of the local round, likewise; not under differential privacy",
        "train.examples": "rows of the local round, likewise; not under differential privacy",
        "clipped": "how many coordinates the plan's bound cut, likewise",
        "shortened_by": "by how much the plan's bound shortened the update, likewise",
        "epsilon": "what this site's units have spent in the run; follows from the plan and their number",
        "seconds": "how long the work took, up to the next power of two",
        "seconds.*": "how long the protocol of one sum took; likewise",
    },
    "pieces": {
        "sum.training": "this site's part in the training sum, one of the messages below",
        "sum.evaluation": "this site's part in the sum of scores, likewise",
        "sum.groups": "this site's part in the draw of the groups, likewise",
    },
    "advertise": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "channel_key": "public key, made for this attempt",
        "mask_key": "public key, made for this attempt",
        "commitment": "to a random seed",
        "graph_commitment": "to random bytes for the draw of the graph",
        "ledger_head": "head of the privacy ledger, which this site alone can read; zeros where it has none",
    },
    "opening": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "advertised": _TRANSCRIPT,
        "value": "random bytes for the draw of the graph",
    },
    "deal": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "agreed": _TRANSCRIPT,
        "boxes": "one for each neighbour, below",
    },
    "box": {
        "recipient": "the neighbour's name",
        "sealed": "shares of this attempt's secrets, encrypted to the neighbour",
        "head": "the neighbour's own ledger_head of an earlier sum, given back; zeros where there is none",
        "signature": _SIGNATURE,
    },
    "masked": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "dealt": _TRANSCRIPT,
        "coordinates": "the update as integers: under masks; in the clear where secure.mode is off",
        "counters": "the counters, below: likewise",
    },
    "complain": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "dealer": "name of a site whose box does not open",
        "box": "that box",
        "channel_secret": "this attempt's key, which opens it; the attempt ends",
    },
    "confirm": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "survived": _TRANSCRIPT,
    },
    "unmask": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "survived": _TRANSCRIPT,
        "self_shares": "shares of survivors' seeds, never of a site that is in key_shares",
        "key_shares": "shares of the mask keys of sites that dropped out",
    },
    "draw commit": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "commitment": "to random bytes for the draw of the groups",
    },
    "draw show": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "committed": _TRANSCRIPT,
        "value": "random bytes for the draw of the groups",
    },
    "draw agree": {
        "kind": "name of the message",
        "site": _SITE,
        "signature": _SIGNATURE,
        "groups": "digest of the groups",
    },
    "sealed": {
        "protocol": "name of the form",
        "run_id": _PLACE,
        "round": _PLACE,
        "stage": _PLACE,
        "attempt": _PLACE,
        "plan": "digest of the plan",
        "roster": "digest of the members' keys",
        "broadcast": "digest of the state that the site trained from",
        "layout": "digest of the order of the coordinates",
        "counters_layout": "digest of the order of the counters",
        "offer": "digest of all that was proposed",
        "aggregator": "the key that opens it",
        "site": _SITE,
        "coordinates_bytes": "length of the update, which follows encrypted to the aggregator",
        "counters_bytes": "length of the counters, which follow likewise",
    },
    "counters": {
        "weight": "this site's weight in the mean: rows, targets or 1, as the plan says",
        "train.loss": "sum of the local round's losses; zero under differential privacy",
        "train.targets": "number of its targets; zero under differential privacy",
        "*": "numerators of the plan's metrics on this site's validation rows",
    },
    "announcement": {
        "node": "the node's number at the server",
        "messages_list": "one message, below",
        "message_object_trees": "the SHA-256 of each piece of it",
        "clientapp_runtime_list": "seconds between taking the request and answering it",
    },
    "message": {
        "metadata": "below",
        "content": "empty here: it follows in pieces",
        "error": "in place of content, below",
    },
    "metadata": {
        "run_id": "Flower's number of the run",
        "message_id": "SHA-256 of the message",
        "src_node_id": "the node's number",
        "dst_node_id": "the server's number",
        "reply_to_message_id": "of the request",
        "group_id": "the round, as in the request",
        "ttl": "seconds that the reply is kept",
        "message_type": "as in the request",
        "created_at": "when the reply was made, by this site's clock",
        "src_task_id": "number of the worker's task",
        "dst_task_id": "number of the server's task",
    },
    "error": {"code": "number", "reason": "a sentence of ours, or the kind of an exception"},
    "tree": {"object_id": "SHA-256 of a piece", "children": "pieces that it consists of"},
    "piece": {
        "node": "the node's number",
        "run_id": "Flower's number of the run",
        "object_id": "SHA-256 of the piece",
        "object_content": "the piece: records as above, arrays in parts of 5 MB",
        "session_id": "as the server named it",
    },
    "array": {
        "dtype": "type of numbers",
        "shape": "how many",
        "stype": "how they lie",
        "arraychunk_ids": "order of the parts",
    },
    "question": {
        "path": "what is asked for: the roster, or a file of a run's result",
        "site": _SITE,
        "time": "by this site's clock",
        "signature": _SIGNATURE,
    },
}


class Claim(StrEnum):
    """What a field follows from where a site trains privately; in words for people."""

    CONSTANT = "constant"
    """The same with and without any one patient: plan, names, keys, randomness, what the server sent, and the
    number of patients, which counts as public."""
    NOISED = "noised and charged"
    """The noised sum, or whatever follows from it and from constants."""
    EXCLUDED = "validation rows"
    """Computed on rows that the claim leaves out by name."""
    PARTS = "its parts"
    """What its parts are, each of which is listed."""
    OUTSIDE = "outside of the claim"
    """May depend on a patient's rows exactly: docs/what-leaves.md says of each why, and how coarse it is."""


_C, _N, _E, _P, _O = Claim.CONSTANT, Claim.NOISED, Claim.EXCLUDED, Claim.PARTS, Claim.OUTSIDE


def _claims(**fields: Claim) -> Mapping[str, Claim]:
    return fields


CLAIMS: Final[Mapping[str, Mapping[str, Claim]]] = {
    "answer": _claims(
        protocol=_C, version=_C, run_id=_C, site=_C, verdict=_O, reasons=_O, rows=_O, seconds_a_round=_O
    ),
    "reason": _claims(code=_O, text=_O),
    "reply": _claims(
        protocol=_C, run_id=_C, plan_digest=_C, round=_C, stage=_C, attempt=_C, exchange=_C, site=_C,
        layout_digest=_C, sums=_P, status=_P, code=_P, reason=_P, local=_P,
    ),
    "local": {
        "validation.*": _E, "train.loss": _C, "train.steps": _C, "train.examples": _C, "clipped": _N,
        "shortened_by": _N, "epsilon": _C, "seconds": _O, "seconds.*": _O,
    },
    "pieces": {"sum.training": _P, "sum.evaluation": _P, "sum.groups": _C},
    "advertise": _claims(
        kind=_C, site=_C, signature=_C, channel_key=_C, mask_key=_C, commitment=_C, graph_commitment=_C,
        ledger_head=_C,
    ),
    "opening": _claims(kind=_C, site=_C, signature=_C, advertised=_C, value=_C),
    "deal": _claims(kind=_C, site=_C, signature=_C, agreed=_C, boxes=_C),
    "box": _claims(recipient=_C, sealed=_C, head=_C, signature=_C),
    "masked": _claims(kind=_C, site=_C, signature=_N, dealt=_C, coordinates=_N, counters=_P),
    "complain": _claims(kind=_C, site=_C, signature=_C, dealer=_C, box=_C, channel_secret=_C),
    "confirm": _claims(kind=_C, site=_C, signature=_C, survived=_C),
    "unmask": _claims(kind=_C, site=_C, signature=_C, survived=_C, self_shares=_C, key_shares=_C),
    "draw commit": _claims(kind=_C, site=_C, signature=_C, commitment=_C),
    "draw show": _claims(kind=_C, site=_C, signature=_C, committed=_C, value=_C),
    "draw agree": _claims(kind=_C, site=_C, signature=_C, groups=_C),
    "sealed": _claims(
        protocol=_C, run_id=_C, round=_C, stage=_C, attempt=_C, plan=_C, roster=_C, broadcast=_C, layout=_C,
        counters_layout=_C, offer=_C, aggregator=_C, site=_C, coordinates_bytes=_C, counters_bytes=_C,
    ),
    "counters": {"weight": _C, "train.loss": _C, "train.targets": _C, "*": _E},
    "announcement": _claims(
        node=_C, messages_list=_P, message_object_trees=_P, clientapp_runtime_list=_O
    ),
    "message": _claims(metadata=_P, content=_P, error=_P),
    "metadata": _claims(
        run_id=_C, message_id=_P, src_node_id=_C, dst_node_id=_C, reply_to_message_id=_C, group_id=_C, ttl=_C,
        message_type=_C, created_at=_O, src_task_id=_C, dst_task_id=_C,
    ),
    "error": _claims(code=_O, reason=_O),
    "tree": _claims(object_id=_P, children=_P),
    "piece": _claims(node=_C, run_id=_C, object_id=_P, object_content=_P, session_id=_C),
    "array": _claims(dtype=_C, shape=_C, stype=_C, arraychunk_ids=_C),
    "question": _claims(path=_C, site=_C, time=_C, signature=_C),
}  # fmt: skip
"""Message → field → its class in a private run."""

CODES: Final[Mapping[str, tuple[Claim, str]]] = {
    "": (_C, "all is well"),
    "bad_request": (_C, "what the server asked for"),
    "bad_message": (_C, "what the server or a peer sent"),
    "behind": (_C, "what the site has of the state"),
    "policy": (_C, "the site's rules, the plan, the ledger"),
    "budget": (_C, "the ledger: charges of every patient alike, sampled or not"),
    "rolled_back": (_C, "the ledger, and what peers know of it"),
    "storage": (_C, "the site's disk"),
    "configuration": (_C, "plan and model, tried on made-up rows before anything is reserved"),
    "nothing_trains": (_C, "the strategy"),
    "out_of_memory": (_C, "made-up rows before anything is reserved: a drawn row counts as zero instead"),
    "no_rows": (_C, "not of a private round: one without rows is noise alone"),
    "nothing_trained": (_C, "what the site was asked before"),
    "nothing_kept": (_C, "what the site was asked before"),
    "weight_above_plan": (_C, "the plan: a private site weighs 1"),
    "nothing_moved": (_N, "the noised step"),
    "non_finite_loss": (_N, "the noised gradient; of scores, validation rows"),
    "non_finite_contribution": (_N, "what was noised"),
    "bad_contribution": (_N, "what was noised"),
    "internal": (_O, "an error that nobody foresaw"),
}
"""Code of a reply, hence its status and reason → class in a private run, and what it follows from."""


def what_is(message: str, field: str) -> str | None:
    """What a field is; None where nobody has said."""
    of_message = FIELDS.get(message, {})
    if field in of_message:
        return of_message[field]
    front, dot, _ = field.partition(".")
    return of_message.get(f"{front}.*") if dot and f"{front}.*" in of_message else of_message.get("*")
