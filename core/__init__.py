"""Values both sides agree on: errors, seeds, layouts, the plan, messages, metrics. No I/O."""
