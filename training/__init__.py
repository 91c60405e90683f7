"""Base model, LoRA, tasks, data, one local round, evaluation, merge. Needs the `training` extra."""
