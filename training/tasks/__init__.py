"""Tasks: one file each. See `contract.py` for what a file has to provide."""

from wardround.core.registry import Registry
from wardround.training.tasks.contract import Task as Task

TASKS: Registry[Task] = Registry(
    kind="task", package="wardround.training.tasks", attribute="TASK", group="wardround.tasks"
)
