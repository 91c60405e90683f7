"""Many sites on one machine: partitions, the engine, bounds, reports."""
