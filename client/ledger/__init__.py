"""The privacy ledger of a site: what its patients have lost, whoever asked, kept where no crash loses it.

    ledger.py      the surface: create, open, reserve, settle, seal
    policy.py      the site's rules: cap, δ, runs without privacy
    charging.py    whether one charge more fits, and what has been spent
    population.py  who is who: units, what sources share, whom a charge may have met
    book.py        what the rows say, as a fold
    draws.py       reservations by stage, read when they are asked for
    rows.py        the rows, as values
    chain.py       the lines that they stand in: chained and signed
    units.py       lists of units, by keyed hashes
    keys.py        the secret of the hashes, and the signing key
    heads.py       what others keep, so that a restored backup is noticed
    row_file.py    durable appending, and the mirror
    store.py       all of it in a folder
    repair.py      replay, write-off, mend: what a person does after a loss
    summary.py     figures for people
    commands.py    `wardround ledger`

No torch, no Flower. `docs/ledger.md` is written for a hospital's data-protection officer.
"""
