"""The consortium of a simulation: an identity for every site and for the server, made for this process.

Masks and seals are real. They protect nobody: all keys lie in one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wardround.client.grouping import Grouped
from wardround.client.parties import Contributions, ContributionsInMemory, Parties
from wardround.core.errors import ConfigError
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose, generator
from wardround.privacy.secagg.admission import Member, SiteState
from wardround.privacy.secagg.draw import DrawSite, DrawState
from wardround.privacy.secagg.dummy import TrustingRoster
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret
from wardround.privacy.sums.aggregation import Aggregation, party
from wardround.privacy.sums.contract import GROUPS, SUMS
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.offers import run_of
from wardround.privacy.sums.trusted import Aggregator, simulated_aggregator
from wardround.strategies.contract import GroupStrategy, SumStrategy


@dataclass
class InMemory:
    """What a simulated site must not forget while the simulation runs; a resumed one has new sites."""

    state: SiteState = field(default_factory=SiteState)

    def load(self) -> SiteState:
        """The last state."""
        return self.state

    def save(self, state: SiteState) -> None:
        """Keep it."""
        self.state = state


@dataclass
class InMemoryDraw:
    """The same of the draw of the groups."""

    state: DrawState = field(default_factory=DrawState)

    def load(self) -> DrawState:
        """The last state."""
        return self.state

    def save(self, state: DrawState) -> None:
        """Keep it."""
        self.state = state


@dataclass(frozen=True)
class Consortium:
    """Identities of an arm's sites and server, made for this process, and the policy that all sites share.

    Attributes:
        server: Signs offers.
        signers: Site → its identity.
        policy: What every site demands.
    """

    server: KeySigner
    signers: Mapping[str, KeySigner]
    policy: SecurePolicy

    @staticmethod
    def of(sites: Iterable[str], policy: SecurePolicy) -> Consortium:
        """Fresh identities."""
        return Consortium(KeySigner.fresh(), {site: KeySigner.fresh() for site in sites}, policy)

    _rosters: dict[type[Roster], Roster] = field(default_factory=dict, repr=False)

    def roster(self, plan: TrainingPlan) -> Roster:
        """All sites' keys; one object for all sites."""
        kind = TrustingRoster if plan.secure.mode == "accounted" else Roster
        if kind not in self._rosters:
            self._rosters[kind] = kind({site: signer.public for site, signer in self.signers.items()})
        return self._rosters[kind]

    def grouped(self, site: str, plan: TrainingPlan, run_id: str, strategy: SumStrategy) -> Grouped | None:
        """One site's part in the draw of the groups; none where the strategy has no groups.

        What the site adds to the draw comes from the seed tree: a simulation can be repeated.
        """
        if not isinstance(strategy, GroupStrategy):
            return None
        value = Secret(generator(plan.seed, Purpose.GROUPS, site=site).bytes(SECRET_BYTES))
        member = self._member(site, plan, run_of(run_id, GROUPS))
        draw = DrawSite(member, plan.strategy.name, strategy.group_size, InMemoryDraw(), lambda: value)
        return Grouped(site, draw)

    def aggregation(self, plan: TrainingPlan) -> Aggregation:
        """The server's side of the run's sums; under `trusted` the server is the aggregator as well.

        Raises:
            ConfigError: The plan names an aggregator whose key this simulation does not have.
        """
        aggregator = None
        if plan.secure.mode == "trusted":
            aggregator = simulated_aggregator(plan.seed)
            require_simulated(plan.secure.aggregator, aggregator)
        return Aggregation(plan.secure.mode, self.server, self.roster(plan), aggregator, Form.of(plan))

    def parties(
        self, site: str, plan: TrainingPlan, run_id: str, kept: Contributions | None = None
    ) -> Parties:
        """One site's side of the run's sums, over what it keeps of them; in memory where nothing is said."""
        form = Form.of(plan)
        return Parties(
            {name: party(plan.secure, self._member(site, plan, run_of(run_id, name)), form) for name in SUMS},
            ContributionsInMemory() if kept is None else kept,
        )

    def _member(self, site: str, plan: TrainingPlan, run_id: str) -> Member:
        return Member(
            site,
            self.signers[site],
            self.roster(plan),
            self.server.public,
            self.policy,
            run_id,
            bytes.fromhex(plan.digest),
            InMemory(),
        )


def require_simulated(key: str | None, aggregator: Aggregator) -> None:
    """Refuse a key that nobody in this process can open for.

    Raises:
        ConfigError: It is not the simulated aggregator's.
    """
    if key != aggregator.public.hex():
        raise ConfigError(
            "a simulation cannot open what is sealed to this aggregator", found=f"secure.aggregator={key}",
            expected=aggregator.public.hex(),
            remedy="leave secure.aggregator empty: the simulation makes a key from its seed",
        )  # fmt: skip
