"""Every field of every message that leaves a site, and what it is.

`tests/unit/client/preview/test_fields.py` compares this with the classes that are sent: a field that is new,
in our messages or in Flower's, fails it until somebody has said here what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def what_is(message: str, field: str) -> str | None:
    """What a field is; None where nobody has said."""
    of_message = FIELDS.get(message, {})
    if field in of_message:
        return of_message[field]
    front, dot, _ = field.partition(".")
    return of_message.get(f"{front}.*") if dot and f"{front}.*" in of_message else of_message.get("*")
