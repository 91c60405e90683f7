"""How derivatives by factors change when a product gets other factors.

A fold over products gives an adapter other factors, B' A' in place of B A, and what was known of the loss
along the old ones is known of other directions. With G the derivative by the weight, those by the factors are
s G Aᵀ and s Bᵀ G. Where the new factors lie in the old ones' spans, B' = B S and A' = T A,

    ∂/∂B' = (∂/∂B) Tᵀ        ∂/∂A' = Sᵀ (∂/∂A)

and otherwise these are the parts that can be known, with S = B⁺ B' and T = A' A⁺.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround.core.lora import DEPENDENT
from wardround.core.packed import Array

LEAST_SHARE: Final = 0.01
"""Of a direction's squared length: of one with less in the old span nothing is known."""


@dataclass(frozen=True)
class Turn:
    """From the factors of one module to others of it; the ranks r and r' may differ.

    Attributes:
        of_a: Sᵀ (r', r): what turns ∂/∂A.
        of_b: T (r', r): what turns ∂/∂B.
        share_a: (r',) share of each column's squared length of B' that lies in the span of B.
        share_b: (r',) likewise of A' and A.
    """

    of_a: Array
    of_b: Array
    share_a: Array
    share_b: Array

    @staticmethod
    def between(old: tuple[Array, Array], new: tuple[Array, Array]) -> Turn:
        """From the old factors to the new ones, each B (d_out, r) and A (r, d_in)."""
        (b, a), (other_b, other_a) = (
            tuple(factor.astype(np.float64) for factor in factors) for factors in (old, new)
        )
        of_a, share_a = _onto(b, other_b)
        of_b, share_b = _onto(a.T, other_a.T)
        return Turn(of_a.T, of_b.T, share_a, share_b)

    def knows(self, role: str) -> bool:
        """Whether something is known along each of the new directions of a factor."""
        return bool(np.all((self.share_a if role == "lora_a" else self.share_b) >= LEAST_SHARE))

    def first(self, role: str, moment: Array) -> Array:
        """A first moment of ∂/∂A (r, d_in) or ∂/∂B (d_out, r) along the new factors."""
        if role == "lora_a":
            return np.asarray(self.of_a @ moment)
        return np.asarray(moment @ self.of_b.T)

    def second(self, role: str, first: Array, second: Array) -> Array:
        """Likewise a second moment, of which only the diagonal is kept.

        Its mean part turns exactly, and of what varies around it coordinates count as independent: the
        estimate of LDAdam (Robert et al. 2024, arXiv:2410.16103) for projected moments. A direction that the
        old factors knew in part has the rest of its length at the same size: left out, it would make the next
        steps too long. Each direction has to be known (`knows`).
        """
        varying = np.maximum(second - first**2, 0.0)
        if role == "lora_a":
            known = self.of_a**2 @ varying + (self.of_a @ first) ** 2
            return np.asarray(known / self.share_a[:, None])
        known = varying @ (self.of_b**2).T + (first @ self.of_b.T) ** 2
        return np.asarray(known / self.share_b)


def _onto(old: Array, new: Array) -> tuple[Array, Array]:
    """X (k, k') with `old` X nearest to `new`, and the share of each new column's squared length in it."""
    turn = np.linalg.pinv(old, rcond=DEPENDENT) @ new
    length = np.sum(new**2, axis=0)
    inside = np.sum((old @ turn) ** 2, axis=0)
    return turn, np.divide(inside, length, out=np.zeros_like(length), where=length > 0)
