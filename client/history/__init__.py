"""What left a site for its server: a signed, chained record, written before the first byte leaves.

    rows.py        the rows, as values
    history.py     open, record, verify
    line.py        between the node, which sends, and the supervisor, which records
    gate.py        at the node: what passes, and what is recorded first
    commands.py    `wardround site history`

No torch, no Flower. `docs/what-leaves.md` is written for a hospital's security officer.
"""
