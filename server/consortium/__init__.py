"""The operator's side of keys and members, and the folder that the server runs from.

    creation.py        a new consortium: its keys, its authority, the server's folder
    operator_folder.py what the operator has on disk, read and checked
    changes.py         one change at a time, whole or not at all, and the log
    invitations.py     one file for one site
    admission.py       admit, revoke, take a member's new keys
    rotation.py        new certificates, a new authority, a new token
    overview.py        members, open invitations, what expires
    server_folder.py   what the server has on disk, read and checked
    commands.py        `wardround consortium`

No torch, no Flower. `docs/consortium.md` says who holds which key.
"""
