"""One seed tree for everything that only has to be reproducible.

(root seed, purpose, round, site) → generator. What protects somebody (keys, masks, privacy noise,
the patients of a private batch) never comes from here: it comes from the site's operating system. In a
simulation it may, where every output says "not private". The key of a simulated aggregator does: it protects
nobody, and the plan that names it has one digest.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import numpy as np


class Purpose(StrEnum):
    """What a seed is for; two purposes never share a stream."""

    INITIALISATION = "initialisation"
    FACTORS = "factors"
    """What of an adapter is drawn once and never trained; a module's name stands in place of a site's."""
    PARTITION = "partition"
    VALIDATION = "validation"
    COHORT = "cohort"
    SHUFFLE = "shuffle"
    DROPOUT = "dropout"
    ROUNDING = "rounding"
    COMPRESSION = "compression"
    """Rounding of what travels in fewer bits than the ring's; that on the ring follows, and is another."""
    SAMPLES = "samples"
    GROUPS = "groups"
    """What a simulated site adds to the draw of the groups; a real one takes it from its system."""
    AGGREGATOR = "aggregator"
    NOISE = "noise"
    """Privacy noise, only in a simulation, which then says "not private": a seed's owner can subtract it."""
    DIRECTIONS = "directions"
    """Directions that a site begins with anew: of a larger rank than the plan's, or in every round."""
    OUTAGE = "outage"
    """Which sites a simulation loses in a round."""
    AVAILABILITY = "availability"
    """When in a period a simulated site is there."""
    DOWNLINK = "downlink"
    UPLINK = "uplink"
    LATENCY = "latency"
    COMPUTE = "compute"
    SLOWNESS = "slowness"
    """Of a simulated site: its line, its machine, and how much slower than that it is in a round."""
    BATCH = "batch"
    """Which units a private batch holds, only in a simulation, which then says "not private"."""
    SHARE = "share"
    """A site\'s share of the noise of a sum, likewise."""
    TUNING = "tuning"
    """What a study's sampler draws a trial's values with; the number of trials before stands for a round."""


def seed_for(root: int, purpose: Purpose, *, round: int = 0, site: str = "") -> int:
    """A 63-bit seed for one place of the tree; equal places give equal seeds on every machine."""
    place = f"{root}\x1f{purpose.value}\x1f{round}\x1f{site}".encode()
    return int.from_bytes(hashlib.sha256(place).digest()[:8], "little") >> 1


def generator(root: int, purpose: Purpose, *, round: int = 0, site: str = "") -> np.random.Generator:
    """A NumPy generator for one place of the tree."""
    return np.random.Generator(np.random.PCG64(seed_for(root, purpose, round=round, site=site)))
