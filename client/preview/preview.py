"""The messages that a site would send in a run of a plan, as values: made, encoded and measured.

As if all went well, and this site were asked in every round. In a real run an offer that waits is answered
again, an attempt that fails is made again, and a site that is not asked is silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from wardround import __version__
from wardround.client.own_figures import Figures, leaving_figures
from wardround.client.preview.phases import cohort_of, draw_of, phases_of
from wardround.client.preview.sizes import sent_bytes
from wardround.core.compression import described
from wardround.core.counting import TRAINING_LAYOUT, metric_layout, scores
from wardround.core.enrolment import SignedPlan
from wardround.core.messages import SECONDS, SPENT, Reply, is_duration
from wardround.core.packed import Layout, Packed
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.plan_offers import PlanAnswer
from wardround.privacy.packing import packed_size
from wardround.privacy.sums.contract import EVALUATION, GROUPS, TRAINING
from wardround.privacy.sums.offers import NOTHING, offer_of
from wardround.runtime.flower_codec import encode_reply
from wardround.runtime.offer_codec import OFFER_TYPE, encode_answer
from wardround.strategies.contract import GroupStrategy, IndividualStrategy, SumStrategy
from wardround.training.plan_strategy import bind_strategy

RUN: Final = "20260101-120000-0a1b2c3d"
"""As long as a run's id is."""
FIGURE: Final = 0.12345678901234567
"""As long as a figure gets."""
TIME: Final = 128.0
"""As a time is told."""
TYPE: Final = "train"
FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class Outgoing:
    """One kind of message.

    Attributes:
        when: In words.
        exchange: Of a round, from 0; None of the answer to the offer.
        parts: Sum → the phase whose message stands in it.
        figures: Names of the site's own figures beside them.
        count: How many in the run.
        bytes: Of one, as the history counts them.
    """

    when: str
    exchange: int | None
    parts: Mapping[str, str]
    figures: tuple[str, ...]
    count: int
    bytes: int


@dataclass(frozen=True)
class Preview:
    """What would leave a site.

    Attributes:
        messages: In their order.
        training: Layout of the statistics, one a stage, that go into the training sum.
        bits: Of one coordinate there.
        counters: Names of the counters beside the training sum, and shapes.
        metrics: Names and shapes of the counters of the evaluation; empty where nothing is scored.
        mode: Of secure aggregation.
        rounds: Of the plan.
        bytes_down: Of the broadcasts and opened sums of the whole run.
        compression: What stands in their place where they travel compressed, in words; else empty.
    """

    messages: tuple[Outgoing, ...]
    training: tuple[Layout, ...]
    bits: int
    counters: Layout
    metrics: Layout
    mode: str
    rounds: int
    bytes_down: int
    compression: str = ""

    @property
    def count(self) -> int:
        """Messages of the whole run."""
        return sum(message.count for message in self.messages)

    @property
    def bytes_up(self) -> int:
        """Bytes of the whole run."""
        return sum(message.count * message.bytes for message in self.messages)


def preview_of(
    document: SignedPlan, site: str, members: Sequence[str], allowed: tuple[Figures, ...] = ()
) -> Preview:
    """What would leave a site.

    Args:
        document: The plan.
        site: Name of the site.
        members: All members, this one among them: names are a part of the messages.
        allowed: Kinds of its own figures that the site's policy lets out.

    Raises:
        ConfigError: The plan is not sound, or too wide for so many sites.
    """
    plan = document.plan
    strategy = bind_strategy(plan)
    made = _Making(plan, strategy, site, sorted({*members, site}), allowed)
    scored = plan.data.validation_fraction > 0
    stages = range(strategy.stages)
    return Preview(
        messages=(made.answer(), *made.draw(), *made.rounds()),
        training=tuple(strategy.statistics_layout(stage) for stage in stages),
        bits=plan.encoding.bits,
        counters=TRAINING_LAYOUT,
        metrics=metric_layout(plan) if scored else NOTHING,
        mode=plan.secure.mode,
        rounds=plan.rounds.rounds,
        bytes_down=made.down(),
        compression=described(plan.encoding.compression),
    )


def figures_of(
    plan: TrainingPlan, sums: Sequence[str], exchange: int, allowed: tuple[Figures, ...]
) -> tuple[str, ...]:
    """Names of a site's own figures that stand in a reply, at the most, under its policy."""
    figures: list[str] = []
    if exchange == 0:
        if EVALUATION in sums:
            ones = Packed(metric_layout(plan), np.ones(metric_layout(plan).size, np.int64))
            figures += [f"validation.{name}" for name in scores(plan, ones).values]
        if TRAINING in sums and plan.privacy is None:
            figures += ["train.loss", "train.steps", "train.examples", "clipped", "shortened_by"]
        if TRAINING in sums and plan.privacy is not None and plan.privacy.trains_privately:
            if plan.privacy.noise == "local":
                figures += ["clipped", "shortened_by"]  # of the update after its noise
            figures.append(SPENT)
        figures.append(SECONDS)
    figures += [f"{SECONDS}.{name}" for name in sorted(sums)]
    leaving = leaving_figures(allowed, dict.fromkeys(figures, FIGURE))
    return tuple(name for name in figures if name in leaving)


@dataclass
class _Making:
    plan: TrainingPlan
    strategy: SumStrategy
    site: str
    members: Sequence[str]
    allowed: tuple[Figures, ...]
    _phases: dict[tuple[str, int, int], list[tuple[str, bytes]]] = field(default_factory=dict)

    def answer(self) -> Outgoing:
        said = PlanAnswer(
            RUN, self.site, "accepted", rows="not_enough", seconds_a_round=123.0, version=__version__
        )
        records, _ = encode_answer(said)
        return Outgoing("the answer to the offer", None, {}, (), 1, sent_bytes(records, OFFER_TYPE, ""))

    def draw(self) -> list[Outgoing]:
        """Before round 1, of a strategy that sums over groups."""
        if not isinstance(self.strategy, GroupStrategy):
            return []
        return [
            self._reply("before round 1", 0, 0, number, {GROUPS: message}, {GROUPS: name}, (), 1)
            for number, (name, message) in enumerate(draw_of(self.site))
        ]

    def rounds(self) -> list[Outgoing]:
        """Every kind of round, and how many there are of each."""
        rules, release, found = self.plan.rounds, self.plan.release, list[Outgoing]()
        scored = self.plan.data.validation_fraction > 0
        kinds = Counter(scored and folded % release.every == 0 for folded in range(rules.rounds))
        everybody = release.evaluators == "all" or isinstance(self.strategy, GroupStrategy)
        sites = len(self.members)
        cohort = sites if isinstance(self.strategy, GroupStrategy) else cohort_size(rules, sites)
        trained = 1 if isinstance(self.strategy, IndividualStrategy) else cohort
        if isinstance(self.strategy, GroupStrategy):
            trained = -(-sites // (sites // self.strategy.group_size or 1))
        for evaluates, count in sorted(kinds.items(), reverse=True):
            for stage in range(self.strategy.stages):
                sums = {TRAINING: trained}
                if evaluates and not stage:
                    sums[EVALUATION] = sites if everybody else cohort
                what = "a round with scores" if evaluates else "a round"
                later = f", stage {stage}" if self.strategy.stages > 1 else ""
                found += self._stage(f"{what}{later}", rules.rounds, stage, sums, count)
        if scored:
            found += self._stage("after the last round", rules.rounds + 1, 0, {EVALUATION: sites}, 1)
        return found

    def down(self) -> int:
        """Broadcasts and opened sums, as arrays are; after round 1 a site makes the first stage's itself.

        Where single contributions are seen no site is shown a sum, and each broadcast is sent.
        """
        stages = range(self.strategy.stages)
        rounds = self.plan.rounds.rounds
        last = 1 if self.plan.data.validation_fraction > 0 else 0
        first, *later = (FLOAT_BYTES * self.strategy.broadcast_layout(stage).size for stage in stages)
        if isinstance(self.strategy, IndividualStrategy):
            return (rounds + last) * first
        bits = self.plan.encoding.bits
        opened = sum(packed_size(self.strategy.statistics_layout(stage).size, bits) for stage in stages)
        if isinstance(self.strategy, GroupStrategy):
            opened *= len(self.members) // self.strategy.group_size or 1
        earlier = sum(
            packed_size(self.strategy.statistics_layout(before).size, bits)
            for stage in stages
            for before in range(stage)
        )
        return first + rounds * (sum(later) + earlier) + (rounds - 1 + last) * opened

    def _stage(
        self, when: str, round: int, stage: int, sums: Mapping[str, int], count: int
    ) -> list[Outgoing]:
        phases = {name: self._sum(name, stage, size) for name, size in sums.items()}
        found = []
        for exchange in range(max(map(len, phases.values()))):
            due = {name: steps[exchange] for name, steps in phases.items() if exchange < len(steps)}
            figures = figures_of(self.plan, list(due), exchange, self.allowed)
            messages = {name: message for name, (_, message) in due.items()}
            parts = {name: phase for name, (phase, _) in due.items()}
            found.append(self._reply(when, round, stage, exchange, messages, parts, figures, count))
        return found

    def _sum(self, name: str, stage: int, size: int) -> list[tuple[str, bytes]]:
        key = (name, stage, size)
        if key not in self._phases:
            statistics = self.strategy.statistics_layout(stage)
            offer = offer_of(
                self.plan, name=name, run_id=RUN, round=1, stage=stage, attempt=0,
                cohort=cohort_of(self.site, self.members, size), roster=bytes(32), broadcast=bytes(32),
                statistics=statistics,
            )  # fmt: skip
            self._phases[key] = phases_of(self.plan, offer, self.site)
        return self._phases[key]

    def _reply(
        self,
        when: str,
        round: int,
        stage: int,
        exchange: int,
        messages: Mapping[str, bytes],
        parts: Mapping[str, str],
        figures: tuple[str, ...],
        count: int,
    ) -> Outgoing:
        local = {name: TIME if is_duration(name) else FIGURE for name in figures}
        reply = Reply(
            run_id=RUN, plan_digest=self.plan.digest, round=round, site=self.site, stage=stage,
            exchange=exchange, sums=messages, local=local,
        )  # fmt: skip
        size = sent_bytes(encode_reply(reply)[0], TYPE, str(round))
        return Outgoing(when, exchange, parts, figures, count, size)


def as_record(preview: Preview) -> dict[str, Any]:
    """The same as values for JSON."""
    return {
        "messages": [
            {
                "when": message.when, "exchange": message.exchange, "parts": dict(message.parts),
                "figures": list(message.figures), "count": message.count, "bytes": message.bytes,
            }
            for message in preview.messages
        ],
        "training": [_tensors(layout) for layout in preview.training],
        "bits": preview.bits,
        "compression": preview.compression or None,
        "counters": _tensors(preview.counters),
        "metrics": _tensors(preview.metrics),
        "secure": preview.mode,
        "count": preview.count,
        "bytes_up": preview.bytes_up,
        "bytes_down": preview.bytes_down,
    }  # fmt: skip


def _tensors(layout: Layout) -> list[dict[str, Any]]:
    return [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in layout.tensors]
