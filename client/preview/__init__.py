"""What would leave a site in a run of a plan: its messages, their fields and bytes, before anything is done.

    fields.py     every field of every message that leaves, and what it is
    sizes.py      a message's bytes, as Flower moves it
    phases.py     what a site says in each phase of a sum
    preview.py    the messages of a run
    commands.py   `wardround site preview`

No torch. `wardround site history` shows what did leave (`client/history/`).
"""
