"""The site's side of keys and members: its folder, its keys, the roster that its people confirmed.

    joining.py         an invitation becomes a folder with fresh keys, and a request
    site_folder.py     what the site has on disk, read and checked; which members count
    roster_pin.py      take a newer roster, confirm it; take the server's new certificate
    rotation.py        new keys, which count once the roster names them
    commands.py        `wardround site join`, `roster`, `server`, `rotate`

No torch, no Flower. `docs/consortium.md` is the way from an invitation to a confirmed roster.
"""
