"""Two adapters at each site: a global one that federates, and one of its own beside it.

After Yang, Long, Shen, Jiang and Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models"
(FedDPA), NeurIPS 2024, arXiv:2403.19211. A module's adapter of rank r is split by its directions: the first
r_g are global, the others the site's own, so that what a site trains and ends with is one PEFT adapter:

    W₀ + s (B_g A_g + B_i A_i),     B = [B_g  B_i],  A = [A_g; A_i]
    a site sends   (B_g,i − B_g, A_g,i − A_g)       and keeps (B_i, A_i)
    (B_g, A_g) ← (B_g, A_g) + step(mean of the updates)

What differs from the paper: it trains the two adapters one after the other (FedDPA-T in turn in every round,
FedDPA-F the site's own after the last), and weighs them anew for every text that is asked, by how near it is
to the site's own rows. Here they train together, and each has weight one: PEFT's own files know nothing of a
weight by the text. Dense tensors (a head, biases) are shared.
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import BaseModel, Field

from wardround.core.errors import ConfigError
from wardround.core.packed import TensorSpec
from wardround.strategies._personal import Part, PartlyShared
from wardround.strategies._server_optimisers import ComposedOptions
from wardround.strategies.contract import SumStrategy


class DualAdapterOptions(ComposedOptions):
    """How the adapter's rank is split."""

    global_rank: int = Field(default=4, gt=0)
    """r_g: directions of each module that federate; the adapter's rank has to be larger."""


@final
class DualAdapter(PartlyShared[DualAdapterOptions]):
    """The first directions of each module are shared.

    Raises:
        ConfigError: A module has no direction left for the site itself.
    """

    Options: ClassVar[type[BaseModel]] = DualAdapterOptions

    def shared(self, spec: TensorSpec) -> Part | None:
        """The first rows of A, the first columns of B, all of a dense tensor."""
        first = slice(0, self.options.global_rank)
        if spec.role == "lora_a" and spec.shape[0] <= self.options.global_rank:
            raise ConfigError(
                f"no direction of {spec.name!r} is left for the sites' own adapters",
                found=f"strategy.options.global_rank={self.options.global_rank}",
                expected=f"less than the adapter's rank, {spec.shape[0]}",
                remedy="a larger adapter.options.r, such as twice the global rank",
            )
        return {"lora_a": (first,), "lora_b": (slice(None), first)}.get(spec.role, ())


STRATEGY: type[SumStrategy] = DualAdapter
