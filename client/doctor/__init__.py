"""`wardround site check`: whether a site could take part, looked at from its own machine.

findings.py        what a line says, and all lines that there are
judge_*.py         values in, findings out: no file, no socket, no clock
probes_*.py        one look at the world each, values out
dry_step.py        one training step on the longest batch, in a process of its own
command.py         looks, judges, prints

Nothing is written to disk, nothing of the site's data is printed, and nothing of it is sent.
"""
