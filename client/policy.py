"""What a plan may ask of a site: the site's own word, and the last one over any plan.

Pure: a plan and numbers in, refusals out, all of them at once. The worker asks before it reads a row or
loads a model, the supervisor asks again before anything is signed for the run; what can only be judged with
the rows counted is asked once they are.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from wardround.client.own_figures import Figures
from wardround.core.checked import Frozen
from wardround.core.errors import PolicyError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import HexKey, TrainingPlan
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.sums.form import Form
from wardround.training.template import columns_of

STRICTNESS: Final = {"none": 0, "site": 0, "example": 1, "patient": 2}
"""How far a unit of privacy protects a patient; a whole site's noise is the server's, and not against it."""
BOUNDED_EPSILON: Final = 10.0
"""Of a whole run: up to here privacy says more of what is learnt by heart than a learning rate does."""
EMBEDDING: Final = ".lora_embedding_"
"""In PEFT's names of factors on an embedding."""
CORE: Final = ".lora_R."
"""In the name of a core (r, r) between frozen factors."""


class PlanPolicy(Frozen):
    """The section `plans` of `site.yaml`. Empty where it says null: whatever a person approves."""

    base_models: tuple[HexKey, ...] | None = None
    """Digests of base models; None: any that lies under `models`, where no server puts one."""
    tasks: tuple[str, ...] | None = None
    strategies: tuple[str, ...] | None = None
    adapters: tuple[str, ...] = ("lora",)
    most_rank: int = Field(default=64, ge=1)
    """Of an adapter's factors."""
    most_coordinates: int = Field(default=100_000_000, ge=1)
    """That are trained and sent: what a plan could have the model learn by heart grows with them."""
    modules: tuple[str, ...] | None = None
    """Patterns of names of modules that may have an adapter, such as `*.q_proj`; None: any layer but those of
    the vocabulary."""
    heads: tuple[str, ...] = ("classifier", "score", "classification_head", "cls", "pre_classifier", "pooler")
    """Modules that may train in full, by the last part of their name that is no number."""
    vocabulary: bool = False
    """Whether embeddings and the layer that gives out words may be trained: they hold rare words by heart."""
    biases: bool = False
    """Whether the base's own biases may be trained."""
    columns: tuple[str, ...] | None = None
    """Columns that a plan may read, as plans call them."""
    labels: tuple[HexKey, ...] | None = None
    """Digests of ordered label lists; `wardround plan check` prints a plan's."""
    templates: tuple[HexKey, ...] | None = None
    """Digests of templates that put columns into a sentence."""
    most_tokens: int = Field(default=4096, ge=2)
    """Of a row."""
    least_units: int = Field(default=20, ge=1)
    """Patients, or rows where the plan names none, that this site must have to train on after its filters."""
    least_a_label: int = Field(default=2, ge=0)
    """Of them with each label that occurs here at all: a label of one patient singles that one out."""
    least_batch: int = Field(default=4, ge=1)
    """Rows of a logical batch."""
    most_rounds: int = Field(default=200, ge=1)
    most_steps: int = Field(default=100_000, ge=1)
    """Over the whole run."""
    most_passes: float = Field(default=100.0, gt=0)
    """Over this site's rows, in the whole run: what a model learns by heart grows with them."""
    most_learning: float = Field(default=50.0, gt=0)
    """Learning rate times steps, over the whole run, where privacy does not bound what is learnt by heart."""
    runs_a_month: int = Field(default=30, ge=1)
    """Accepted in any thirty days: each run is another look at the same patients."""
    privacy: Literal["none", "example", "patient"] = "none"
    """The least that a plan has to protect."""
    most_epsilon: float | None = Field(default=None, gt=0)
    """Of a plan that names its ε; the ledger's cap holds whatever a plan says."""
    most_delta: float = Field(default=1e-3, gt=0, lt=1)
    most_bytes: int = Field(default=512 * 2**20, ge=1)
    """Of the largest message that leaves in a round."""
    smallest_cell: int = Field(default=5, ge=1)
    """Patients, or rows where the plan names none; counts leave as multiples of so many. 1: exactly."""
    figures: tuple[Figures, ...] = ()
    """What of this site alone the server may see: `training` (its loss, steps and rows), `validation` (its
    own scores), `clipping`. Sums over all sites hold the same, and show it of nobody."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.most_epsilon is not None and self.privacy == "none":
            raise ValueError("most_epsilon holds for private plans alone: set privacy to example or patient")
        return self


@dataclass(frozen=True)
class LocalCounts:
    """What is known of a site's rows once they are read; it stays at the site.

    Attributes:
        rows: That it may train on.
        units: Their patients, or the rows where the plan names none.
        units_a_label: Label → units that have a row of it.
    """

    rows: int
    units: int
    units_a_label: tuple[int, ...] = ()


class RefusedPlanError(PolicyError):
    """The site's policy does not allow the plan.

    Args:
        refusals: Every reason, in the policy's order.
    """

    def __init__(self, refusals: tuple[PolicyError, ...]) -> None:
        super().__init__(
            "this site's policy does not allow the plan",
            found="; ".join(sentence(refusal) for refusal in refusals),
            remedy="change the plan, or the section plans of site.yaml",
        )
        self.refusals = refusals


def sentence(refusal: PolicyError) -> str:
    """A refusal in one sentence that may leave: what the plan asks for, and what the policy says."""
    expected = f", allowed: {refusal.expected}" if refusal.expected else ""
    return f"{refusal.what} ({refusal.found}{expected})"


def require_allowed(policy: PlanPolicy, sums: SecurePolicy, plan: TrainingPlan, *, groups: bool) -> None:
    """Refuse a plan that asks for more than the site allows, before anything of the site is looked at.

    Args:
        policy: On plans.
        sums: On secure aggregation.
        plan: The plan.
        groups: Whether its strategy sums over groups of sites.

    Raises:
        RefusedPlanError: Every reason at once.
    """
    found = [*plan_refusals(policy, plan), *_sum_refusals(sums, plan, groups=groups)]
    if found:
        raise RefusedPlanError(tuple(found))


def require_no_vocabulary(policy: PlanPolicy, trained: tuple[str, ...]) -> None:
    """Refuse a plan that trains layers of the vocabulary under names of which `require_allowed` knew nothing.

    Args:
        policy: On plans.
        trained: Trained tensors on such layers, as the loaded model has them (`training/vocabulary.py`).

    Raises:
        RefusedPlanError: There are some, and the site does not allow it.
    """
    if trained and not policy.vocabulary:
        more = f" and {len(trained) - 1} more" if trained[1:] else ""
        raise RefusedPlanError((_no("vocabulary", _WHAT["vocabulary"], trained[0] + more),))


def _sum_refusals(sums: SecurePolicy, plan: TrainingPlan, *, groups: bool) -> Iterator[PolicyError]:
    try:
        sums.check_mode(plan.secure.mode, plan.secure.aggregator)
    except PolicyError as error:
        yield error
    try:
        if groups:
            sums.check_groups(plan.strategy.name)
    except PolicyError as error:
        yield error


def plan_refusals(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    """Everything for which a policy refuses a plan, without a look at the site's rows or models."""
    for rules in (_names, _adapter, _data, _work, _privacy, _bytes):
        yield from rules(policy, plan)


def rows_refusals(policy: PlanPolicy, plan: TrainingPlan, counts: LocalCounts) -> Iterator[PolicyError]:
    """What the policy refuses once this site's rows are counted. No count is named: the reasons leave."""
    if counts.units < policy.least_units:
        yield _no("least_units", "the plan would train on too few patients or rows here")
    if any(0 < units < policy.least_a_label for units in counts.units_a_label):
        yield _no("least_a_label", "a label of the plan stands for too few patients or rows here")
    local, rounds = plan.local, plan.rounds.rounds
    steps = local.steps
    if steps is None:
        batches = max(1.0, counts.rows / local.batch_size)
        total = rounds * (local.epochs or 0.0) * batches
    else:
        total = float(rounds * steps)
        if total * local.batch_size > policy.most_passes * counts.rows:
            yield _no("most_passes", "the plan would go over the rows here too often")
    if steps is None and total > policy.most_steps:
        yield _no("most_steps", "the plan would take too many steps here")
    if steps is None and total * local.learning_rate > policy.most_learning and not _bounded(plan):
        yield _no("most_learning", "the plan's learning rate times its steps here is too large")


def month_refusals(policy: PlanPolicy, accepted: tuple[float, ...], now: float) -> Iterator[PolicyError]:
    """Refuse one more run after so many in the last thirty days.

    Args:
        policy: On plans.
        accepted: When other runs were accepted, seconds since 1970.
        now: Likewise.
    """
    recent = sum(when > now - 30 * 86_400 for when in accepted)
    if recent >= policy.runs_a_month:
        yield _no("runs_a_month", "this site has taken part in too many runs in thirty days")


def _no(name: str, what: str, found: object = None, expected: object = None) -> PolicyError:
    return PolicyError(
        what, found=name if found is None else f"{name}: {found}", expected=expected,
        remedy=f"ask for a plan that keeps it, or change plans.{name} in site.yaml",
    )  # fmt: skip


def _names(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    for name, what, found, allowed in (
        (
            "base_models",
            "the base model is not one of this site's list",
            plan.base.digest,
            policy.base_models,
        ),
        ("tasks", "the task is not allowed", plan.task.name, policy.tasks),
        ("strategies", "the strategy is not allowed", plan.strategy.name, policy.strategies),
        ("adapters", "the adapter's method is not allowed", plan.adapter.method, policy.adapters),
    ):
        if allowed is not None and found not in allowed:
            yield _no(name, what, found, ", ".join(allowed) or "none")


def _adapter(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    layout = plan.adapter.layout
    rank = largest_rank(layout)
    if rank > policy.most_rank:
        yield _no("most_rank", "the adapter's rank is too large", rank, f"at most {policy.most_rank}")
    if layout.size > policy.most_coordinates:
        most = policy.most_coordinates
        yield _no("most_coordinates", "the plan trains too many coordinates", layout.size, f"at most {most}")
    wrong: dict[str, list[str]] = {}
    for spec in layout.tensors:
        fault = _fault(policy, spec)
        if fault is not None:
            wrong.setdefault(fault, []).append(spec.name)
    for name, names in wrong.items():
        yield _no(name, _WHAT[name], f"{names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""))


_WHAT: Final = {
    "vocabulary": "the plan trains embeddings, or the layer that gives out words",
    "modules": "the plan puts an adapter on a module that is not allowed",
    "heads": "the plan trains a module in full that is no head",
    "biases": "the plan trains biases of the base model",
}
_VOCABULARY: Final = (
    "embed_tokens", "embed_positions", "embed_in", "embed_out", "word_embeddings", "position_embeddings",
    "token_type_embeddings", "embeddings", "wte", "wpe", "shared", "lm_head", "output_embeddings",
    "vocab_projector", "predictions", "decoder",
)  # fmt: skip
"""Last parts of names of modules that hold a row or a column for each word, across transformers."""


def _fault(policy: PlanPolicy, spec: TensorSpec) -> str | None:
    """Which rule a trained tensor breaks; None: none."""
    module = spec.module or spec.name.rpartition(".")[0]
    last = next((part for part in reversed(module.split(".")) if not part.isdigit()), module)
    if not policy.vocabulary and (EMBEDDING in spec.name or last in _VOCABULARY):
        return "vocabulary"
    if spec.role != "dense" or ".lora_" in spec.name:  # of a convolution the factors are dense
        allowed = policy.modules
        fits = allowed is None or any(fnmatch.fnmatchcase(module, pattern) for pattern in allowed)
        return None if fits else "modules"
    if set(module.split(".")) & set(policy.heads):
        return None
    if spec.name.endswith(".bias"):
        return None if policy.biases else "biases"
    return "heads"


def largest_rank(layout: Layout) -> int:
    """Of all factors and cores; 0 without any."""
    factors = [
        spec
        for spec in layout.tensors
        if spec.shape and (spec.role in ("lora_a", "lora_b") or CORE in spec.name)
    ]
    return max((spec.shape[0 if spec.role == "lora_a" else -1] for spec in factors), default=0)


def columns_read(plan: TrainingPlan) -> set[str]:
    """Every column that the plan reads of a row, as plans call it."""
    data = plan.data
    own = {data.id_column, data.unit_column, *data.columns.values()} - {None}
    return {str(name) for name in own} | (columns_of(data.template) if data.template else set())


def _data(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    data = plan.data
    if policy.columns is not None:
        more = sorted(columns_read(plan) - set(policy.columns))
        if more:
            yield _no("columns", "the plan reads columns that are not allowed", ", ".join(more))
    if policy.labels is not None and data.labels and data.labels_digest not in policy.labels:
        yield _no("labels", "the list of labels is not allowed", data.labels_digest)
    template = data.template_digest
    if policy.templates is not None and template is not None and template not in policy.templates:
        yield _no("templates", "the template is not allowed", template)
    if data.max_length > policy.most_tokens:
        yield _no(
            "most_tokens",
            "the plan reads longer rows than are allowed",
            data.max_length,
            f"at most {policy.most_tokens}",
        )


def _work(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    local, rounds = plan.local, plan.rounds.rounds
    if local.batch_size < policy.least_batch:
        least = policy.least_batch
        yield _no("least_batch", "the logical batch is too small", local.batch_size, f"at least {least}")
    if rounds > policy.most_rounds:
        yield _no("most_rounds", "the plan has too many rounds", rounds, f"at most {policy.most_rounds}")
    if local.epochs is not None and rounds * local.epochs > policy.most_passes:
        found, most = f"{rounds * local.epochs:g}", f"at most {policy.most_passes:g}"
        yield _no("most_passes", "the plan goes over the rows too often", found, most)
    if local.steps is None:
        return  # what follows is counted with the rows
    steps = rounds * local.steps
    if steps > policy.most_steps:
        yield _no("most_steps", "the plan takes too many steps", steps, f"at most {policy.most_steps}")
    if steps * local.learning_rate > policy.most_learning and not _bounded(plan):
        found, most = f"{steps * local.learning_rate:g}", f"at most {policy.most_learning:g}"
        yield _no("most_learning", "the plan's learning rate times its steps is too large", found, most)


def _bounded(plan: TrainingPlan) -> bool:
    """Whether every step is clipped and noised at the sites, to an ε that bounds what is learnt of a patient.

    Such steps are long where they are few: the clip norm is their length, and the learning rate its scale.
    """
    rules = plan.privacy
    return (
        rules is not None and rules.trains_privately and rules.noise != "central"
        and rules.epsilon is not None and rules.epsilon <= BOUNDED_EPSILON
    )  # fmt: skip


def _privacy(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    rules = plan.privacy
    unit = "none" if rules is None else rules.unit
    if STRICTNESS[unit] < STRICTNESS[policy.privacy]:
        yield _no(
            "privacy", "the plan's differential privacy protects less than is demanded", unit, policy.privacy
        )
    if rules is None:
        return
    if policy.most_epsilon is not None and (rules.epsilon is None or rules.epsilon > policy.most_epsilon):
        found = "not named" if rules.epsilon is None else f"{rules.epsilon:g}"
        yield _no("most_epsilon", "the plan's ε is too large", found, f"at most {policy.most_epsilon:g}")
    if rules.delta > policy.most_delta:
        yield _no(
            "most_delta", "the plan's δ is too large", f"{rules.delta:g}", f"at most {policy.most_delta:g}"
        )


def _bytes(policy: PlanPolicy, plan: TrainingPlan) -> Iterator[PolicyError]:
    # Statistics may be larger than the adapter; those are judged at the site's own encoder by the same bound.
    found = Form.of(plan).size(plan.adapter.layout.size, plan.encoding.bits)
    if found > policy.most_bytes:
        yield _no(
            "most_bytes", "a message would be too large", f"{found} bytes", f"at most {policy.most_bytes}"
        )
