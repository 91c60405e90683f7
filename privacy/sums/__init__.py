"""A round's sums: what each site contributes goes in, the sum over those that answered comes out.

    contract.py   the two sides of one sum: a site's `Party`, the server's `Collector`
    offers.py     what plan and cohort say of a sum; server and site derive the same
    cohort.py     what every collector does with the cohort of its offer
    phased.py     secure aggregation, phase by phase: `real`, and `accounted` without its cryptography
    plain.py      `off`: contributions travel in the clear
    trusted.py    `trusted`: sealed to an aggregator that the consortium chose
    seen.py       the server's side of these two, which see each contribution

A round has up to two sums, which travel in the same messages: `training` (the contribution, its weight and
loss) over the cohort, `evaluation` (metric numerators of the broadcast adapter) over whoever scores it.
"""
