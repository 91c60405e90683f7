"""Whether an offer may stand in a site's record: the supervisor judges it again, as the worker has.

The run has to be one that this site accepted, its plan the consortium's, the offer the server's and newer
than the last; the site's own rules hold. So a worker that something hostile has taken over gets no signature
for a run, a cohort or an attempt that its site would have refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.membership.site_folder import SiteFolder, confirmed_roster
from wardround.client.policy import require_allowed
from wardround.client.sealed_files import Owner
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import PeerError, PolicyError
from wardround.core.plan import TrainingPlan
from wardround.privacy.sealed import context_of
from wardround.privacy.secagg.admission import Member, Record, SiteState, accept, accept_seen
from wardround.privacy.secagg.draw import DrawOffer, SignedDraw
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.sums.contract import GROUPS
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.offers import run_of
from wardround.privacy.sums.trusted import header_of
from wardround.runtime.signed_plan import read_signed_plan
from wardround.strategies.contract import GroupStrategy
from wardround.training.plan_strategy import bind_strategy


@dataclass(frozen=True)
class AcceptedRun:
    """A run that this site takes part in.

    Attributes:
        plan: As the consortium signed it.
        member: This site in it; `run_id` and `record` are of the sum in question.
    """

    plan: TrainingPlan
    member: Member

    def check(self, known: SiteState, new: SiteState) -> None:
        """Refuse a record that goes on with anything but an offer that this site accepts.

        Raises:
            PolicyError: The site's own rules refuse, or the record is not what follows from the offer.
            PeerError: The offer is not the server's, or contradicts plan, roster or an earlier one.
        """
        if new.offer is None:
            raise PolicyError("a record goes on without the offer that it goes on with")
        seen = self.plan.secure.mode in ("off", "trusted")
        judge = accept_seen if seen else accept
        judge(self.member, known, new.offer, new.offer.offer.broadcast)
        if new != known.after(new.offer):
            raise PolicyError("a record is not what follows from its offer")

    def envelope(self, offer: Offer) -> bytes | None:
        """What the signature over the site's envelope is bound to; None where contributions are not sealed.

        Raises:
            PolicyError: The site's own rules trust no aggregator, or another one.
            PeerError: The contribution is too long to be sealed.
        """
        rules, member = self.plan.secure, self.member
        if rules.mode != "trusted":
            return None
        key = member.policy.trusted_key(rules.aggregator)
        return context_of(header_of(offer, member.name, key, Form.of(self.plan)))

    def check_draw(self, signed: SignedDraw | None) -> DrawOffer:
        """The offer of a draw, if the server made it to this site in this run.

        Raises:
            PolicyError: More draws than the site's own rules allow, or there is no offer.
            PeerError: It is not.
        """
        member = self.member
        if signed is None:
            raise PolicyError("a draw goes on without its offer")
        offer = signed.check(member.server)
        expected = member.run_id, member.plan, member.roster.digest
        if (offer.run_id, offer.plan, offer.roster) != expected or member.name not in offer.sites:
            raise PeerError("the draw is for another run, plan, roster or site", found=offer.run_id)
        member.policy.check_attempt(offer.attempt)
        return offer


Runs = Callable[[Owner, str, Record], AcceptedRun]
"""Whose record, of which sum (empty: the draw), and the record itself → the run.

It raises a PolicyError where none was accepted.
"""


def runs_of(site: SiteFolder) -> Runs:
    """The runs that a site has accepted, and its identity, as its folder has them now."""

    def accepted_run(owner: Owner, sum: str, record: Record) -> AcceptedRun:
        folders, settings = RunFolders(site.path / RUNS), read_site_settings(site.path / FILE)
        accepted, data = folders.accepted(owner.run_id), folders.plan(owner.run_id)
        if accepted is None or data is None:
            raise PolicyError("this site has accepted no such run", found=owner.run_id)
        signed, roster = read_signed_plan(data, site.consortium_key), confirmed_roster(site)
        if signed.digest != accepted.plan or owner.plan.hex() != signed.plan.digest:
            raise PolicyError("this site has accepted another plan in this run", found=owner.plan.hex()[:12])
        if roster.digest.hex() != accepted.roster:
            raise PolicyError("the roster that this site's people confirmed is not that of the run any more")
        if folders.declined(owner.run_id, signed.digest):
            raise PolicyError("a person at this site has declined the plan of this run")
        if settings.approval == "manual" and not folders.approved(owner.run_id, signed.digest):
            raise PolicyError("no person at this site has approved the plan of this run")
        groups = isinstance(bind_strategy(signed.plan), GroupStrategy)
        require_allowed(settings.plans, settings.policy, signed.plan, groups=groups)
        member = Member(
            site.name, site.signer(), roster, bytes.fromhex(accepted.server), settings.policy,
            run_of(owner.run_id, sum or GROUPS), owner.plan, record,
        )  # fmt: skip
        return AcceptedRun(signed.plan, member)

    return accepted_run
