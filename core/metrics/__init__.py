"""Global metrics from summed counters, one family a file; NumPy only: a server has no torch."""

from wardround.core.metrics.contract import MetricFamily as MetricFamily
from wardround.core.registry import Registry

METRICS: Registry[MetricFamily] = Registry(
    kind="metric family", package="wardround.core.metrics", attribute="METRICS", group="wardround.metrics"
)
