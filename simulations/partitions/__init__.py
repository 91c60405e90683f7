"""How rows are spread over simulated sites: one file each. See `contract.py`."""

from wardround.core.registry import Registry
from wardround.simulations.partitions.contract import Partition as Partition

PARTITIONS: Registry[Partition] = Registry(
    kind="partition",
    package="wardround.simulations.partitions",
    attribute="PARTITION",
    group="wardround.partitions",
)
