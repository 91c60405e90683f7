"""Noise for differential privacy: from a cryptographic source, exact, and for sums in the ring.

    source.py    random words: from the operating system, or repeatable in a simulation ("not private")
    gaussian.py  a sum of floats, and the Gaussian mechanism's answer on a grid
    correlated.py  the same, where the noise of a step takes some of the earlier ones back
    discrete.py  the discrete Gaussian on the integers
    shares.py    distributed noise: a site's share, rounding, sensitivity, what is left in the worst case
    exact.py     the few decisions that float64 cannot make

Floating point decides nothing in what is drawn: both samplers return what real arithmetic would, so that no
guarantee has a term for them. Needs NumPy, SciPy and `cryptography`; SciPy is imported when noise is drawn.
What noise costs is in `accounting/`.
"""
