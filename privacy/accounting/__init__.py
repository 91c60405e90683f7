"""Accounting for differential privacy: what a unit has lost so far, and how much noise a run needs.

    mechanisms.py    what was done to a unit, as values: each says all of its mathematics
    banded.py        the matrix of noise that is correlated over steps, and what one unit can change
    steps.py         mechanisms counted, each as one step of its kind
    account.py       everything that was done to one unit, and its epsilon
    tally.py         a running account, for whoever keeps a hundred thousand entries
    cap.py           whether one thing more may be done, whoever chose it and why
    calibrate.py     the least noise that keeps a planned run under a target
    renyi.py         Rényi DP of a mechanism, and what it means as (ε, δ)
    lattice.py       Rényi DP and dominating Gaussians of a sum of discrete Gaussians
    privacy_loss.py  privacy loss distributions of a fixed schedule

`renyi.py` and `privacy_loss.py` stand on `dp_accounting`, and import it when they are first asked; nobody
else does. Neighbours differ by one whole unit, added or removed. A central-limit figure (GDP) is nowhere
used: it is no bound.
"""
