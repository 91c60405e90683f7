"""Many sites in one process, without torch: each answers the server's messages with a recorded update.

    python _replaying_sites.py FOLDER RECORDED

FOLDER holds the sites' folders, as `wardround site join` makes them; RECORDED is an .npy file, one update
a row, which the sites take in turn. Every site has its own keys, its own connection (Flower's fleet client,
TLS, node authentication), its own pauses between looks and its own side of the sums; what a site does beside
that (model, rows, ledger, files) is left out.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supernode.fleet_http_connection import http_request_response

from wardround.client.membership.site_folder import SiteFolder, confirmed_roster, open_site_folder
from wardround.client.parties import Parties, contribution, scores_only
from wardround.client.polling import Polling
from wardround.core.counting import metric_counters, training_counters
from wardround.core.messages import Request, reply_to
from wardround.core.packed import Array
from wardround.core.plan import TrainingPlan
from wardround.core.plan_offers import PlanAnswer, PlanOffer
from wardround.privacy.secagg.admission import Member
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.sums.aggregation import party
from wardround.privacy.sums.contract import SUMS, TRAINING
from wardround.privacy.sums.offers import run_of
from wardround.runtime.flower_codec import decode_request, encode_reply
from wardround.runtime.offer_codec import OFFER_TYPE, decode_offer, encode_answer
from wardround.runtime.roster import read_certificate
from wardround.runtime.signed_plan import read_signed_plan
from wardround.simulations.consortium import InMemory

POLICY = SecurePolicy(modes=("real", "off"), least_cohort=3, least_honest=2)
POLLING = Polling()


@dataclass
class ReplayingSite:
    """One site: accepts the plan that it is offered, and sends its update in every round."""

    folder: SiteFolder
    update: Array
    plan: TrainingPlan | None = None
    parties: Parties | None = None

    def answer(self, message: Message) -> RecordDict:
        """What the site replies."""
        if message.metadata.message_type == OFFER_TYPE:
            return encode_answer(self.accept(decode_offer(message.content)))[0]
        assert self.plan is not None, "a request before an offer"
        request = decode_request(message.content, self.plan.adapter.layout)
        return encode_reply(reply_to(request, sums=self.sums(request)))[0]

    def accept(self, offer: PlanOffer) -> PlanAnswer:
        """Check what is signed, and prepare the sums."""
        plan = read_signed_plan(offer.plan, self.folder.consortium_key).plan
        certificate = read_certificate(offer.certificate, self.folder.consortium_key)
        certificate.check(datetime.now(UTC))
        roster = confirmed_roster(self.folder)
        assert roster.digest == offer.roster
        self.plan = plan
        self.parties = Parties(
            {
                name: party(
                    plan.secure,
                    Member(
                        self.folder.name, self.folder.signer(), roster, bytes.fromhex(certificate.identity),
                        POLICY, run_of(offer.run_id, name), bytes.fromhex(plan.digest), InMemory(),
                    ),
                )
                for name in SUMS
            }
        )  # fmt: skip
        return PlanAnswer(offer.run_id, self.folder.name, "accepted", rows="enough")

    def sums(self, request: Request) -> dict[str, bytes]:
        """The answer to each sum's message."""
        plan, parties = self.plan, self.parties
        assert plan is not None
        assert parties is not None
        if request.exchange:
            return {name: parties.step(name, request) for name in request.sums}
        named = request.follows or (request.broadcast.digest if request.broadcast else "")
        assert named, "another attempt is not replayed"
        digest, answers = bytes.fromhex(named), {}
        for name in request.sums:
            offer = parties.check(name, request, plan, request.run_id, plan.adapter.layout, digest)
            lanes = scores_only(metric_counters(plan, None))
            if name == TRAINING:
                counters = training_counters(weight=1, loss_sum=0.5, targets=1)
                lanes, _ = contribution(self.update, counters, 1, offer, plan, self.folder.name)
            answers[name] = parties.begin(name, request, digest, lanes, lambda _: None)
        return answers

    def serve_on(self) -> None:
        """Serve until this process ends; a connection that broke is made anew, as a supervisor does it."""
        while True:
            self.serve()
            print(f"{self.folder.name} begins anew", flush=True)
            time.sleep(1.0)

    def serve(self) -> None:
        """Look for messages and answer them, as Flower's node does, until something goes wrong."""
        key = self.folder.transport_key()
        with http_request_response(
            self.folder.server_address, insecure=False, root_certificates=self.folder.ca.read_bytes(),
            authentication_keys=(key, key.public_key()),
        ) as (_, receive, send, _, _, pull, push, confirm):  # fmt: skip
            last = time.monotonic()
            while True:
                found = receive()
                if found is None:
                    time.sleep(POLLING.pause_s(time.monotonic() - last, random.random()))  # noqa: S311 - spreads sites
                    continue
                head, tree = found
                run = head.metadata.run_id
                message = pull_and_inflate_object_from_tree(
                    tree, partial(pull, run), partial(confirm, run), return_type=Message
                )
                message.metadata.__dict__["_message_id"] = tree.object_id
                reply = Message(self.answer(message), reply_to=message)
                reply.metadata.__dict__["_message_id"] = reply.object_id
                with no_object_id_recompute():
                    wanted, session = send(reply, get_object_tree(reply), 0.0)
                    objects = get_all_nested_objects(reply)
                    for name in wanted:
                        push(run, session, name, objects[name].deflate())
                last = time.monotonic()


def main(folder: str, recorded: str) -> None:
    """All sites of a folder."""
    updates = np.load(recorded, mmap_mode="r")
    paths = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    threads = []
    for number, path in enumerate(paths):
        site = ReplayingSite(open_site_folder(path), np.asarray(updates[number % len(updates)]))
        threads.append(threading.Thread(target=site.serve_on, name=site.folder.name, daemon=True))
        threads[-1].start()
    assert "torch" not in sys.modules
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
