"""Base model, LoRA, tasks, data, one local round, evaluation, merge. Needs the `training` extra."""

from wardround.training._notices import leave_out_kernel_notice

leave_out_kernel_notice()
