"""FedSA-LoRA: the A matrices federate, every B stays at its site.

Guo, Zeng, Wang, Fan, Wang and Qu, "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
ICLR 2025, arXiv:2410.01463. Both factors train. The paper finds in A what sites have in common, and in B what
is a site's own:

    a site sends   A_i − A               and keeps B_i
    A ← A + step(Σ w_i (A_i − A) / Σ w_i)
    site i ends with  W₀ + s B_i A

The paper averages A itself with equal weights; with updates and FedAvg's weights the mean is the same where
those are equal and everybody answers. Dense tensors (a head, biases) are shared and averaged as A is.
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import BaseModel

from wardround.core.packed import TensorSpec
from wardround.strategies._personal import Part, PartlyShared
from wardround.strategies._server_optimisers import ComposedOptions
from wardround.strategies.contract import SumStrategy


@final
class FedSA(PartlyShared[ComposedOptions]):
    """Everything is shared but B."""

    Options: ClassVar[type[BaseModel]] = ComposedOptions

    def shared(self, spec: TensorSpec) -> Part | None:
        """All of A and of a dense tensor, nothing of B."""
        return None if spec.role == "lora_b" else ()


STRATEGY: type[SumStrategy] = FedSA
