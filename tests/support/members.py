"""Keys, members and rosters for tests (`pythonpath` in pyproject.toml finds this folder)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from wardround.client.membership.joining import Joined, join
from wardround.client.membership.roster_pin import confirm_roster, update_roster
from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.privacy.secagg.secret import SECRET_BYTES
from wardround.runtime.roster import RosterDocument, RosterMember
from wardround.runtime.small_files import transport_point
from wardround.server.consortium.admission import Changed, admit
from wardround.server.consortium.creation import create
from wardround.server.consortium.invitations import invite
from wardround.server.consortium.operator_folder import open_operator_folder

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def transport_key() -> str:
    """A fresh P-384 public key, as rosters write it."""
    return transport_point(ec.generate_private_key(ec.SECP384R1()).public_key())


def roster_member(site: str, **changes: Any) -> RosterMember:
    """A member with fresh keys."""
    fields: dict[str, Any] = {
        "site": site, "identity": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        "transport": transport_key(), "admitted": NOW,
    }  # fmt: skip
    return RosterMember(**(fields | changes))


def roster_document(*sites: str, **changes: Any) -> RosterDocument:
    """A first roster of these sites, in order."""
    fields: dict[str, Any] = {
        "consortium": "northern lights", "version": 1, "issued": NOW,
        "members": tuple(roster_member(site) for site in sites),
    }  # fmt: skip
    return RosterDocument(**(fields | changes))


def next_roster(former: RosterDocument, **changes: Any) -> RosterDocument:
    """The version after a roster."""
    fields = {"version": former.version + 1, "previous": former.digest}
    return RosterDocument(**(former.model_dump() | fields | changes))


class Killed(BaseException):
    """The process ends here, as far as the code under test can tell."""


class KillAt:
    """Stands in for a function, and kills at one of its calls: before it has done anything, or after."""

    def __init__(self, real: Callable[..., Any], call: int, *, after: bool = False) -> None:
        self.real, self.call, self.after, self.calls = real, call, after, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The real function, but for the call that kills."""
        self.calls += 1
        if self.calls == self.call and not self.after:
            raise Killed
        result = self.real(*arguments, **named)
        if self.calls == self.call:
            raise Killed
        return result


@dataclass
class Practice:
    """A consortium and its sites in one folder, driven without the command line."""

    path: Path
    now: datetime = NOW
    invitations: dict[str, bytes] = field(default_factory=dict)

    @property
    def operator(self) -> Path:
        """The operator's folder."""
        return self.path / "operator"

    def make(self, **changes: Any) -> Practice:
        """Make the consortium."""
        create(self.operator, "northern lights", "127.0.0.1:9443", self.now, **changes)
        return self

    def invite(self, site: str, **changes: Any) -> bytes:
        """Invite a site; the invitation's file."""
        file = self.path / f"{site}.{len(list(self.path.iterdir()))}.json"
        invite(self.operator, site, file, changes.pop("now", self.now), **changes)
        self.invitations[site] = file.read_bytes()
        return self.invitations[site]

    def join(self, site: str, **changes: Any) -> Joined:
        """Join with the site's last invitation."""
        return join(self.invitations[site], self.path / site, changes.pop("now", self.now), **changes)

    def request(self, site: str) -> bytes:
        """The site's request to join."""
        return (self.path / site / "request.json").read_bytes()

    def admit(self, site: str, **changes: Any) -> Changed:
        """Admit the site by its request."""
        return admit(self.operator, self.request(site), changes.pop("now", self.now), **changes)

    def member(self, site: str) -> SiteFolder:
        """Invite, join, admit; the site has not seen the roster yet."""
        self.invite(site)
        joined = self.join(site)
        self.admit(site)
        return joined.site

    def signed_roster(self) -> bytes:
        """The operator's present roster."""
        return (self.operator / "roster.json").read_bytes()

    def roster(self) -> RosterDocument:
        """The same, read."""
        return open_operator_folder(self.operator).roster()

    def log(self) -> list[dict[str, Any]]:
        """The operator's log."""
        lines = (self.operator / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def update(self, *sites: str) -> None:
        """Give the present roster to sites."""
        for site in sites:
            update_roster(open_site_folder(self.path / site), self.signed_roster(), self.now)

    def confirm(self, *sites: str) -> None:
        """Have sites take and confirm the present roster."""
        self.update(*sites)
        for site in sites:
            confirm_roster(open_site_folder(self.path / site), self.roster().digest, self.now)


def altered(data: bytes, place: int, change: int) -> bytes:
    """The bytes with one of them changed."""
    out = bytearray(data)
    out[place % len(out)] ^= change
    return bytes(out)


def private_bytes(folder: Path) -> dict[str, bytes]:
    """Every secret in a folder, by its file: raw private keys, tokens, storage keys."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".key" and file.stat().st_size == SECRET_BYTES:
            found[str(file)] = file.read_bytes()
        elif file.suffix == ".key":
            data = file.read_bytes()
            load: Any = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
            key = load(data, None)
            if isinstance(key, Ed25519PrivateKey):
                found[str(file)] = key.private_bytes_raw()
            else:
                value = key.private_numbers().private_value
                found[str(file)] = value.to_bytes((value.bit_length() + 7) // 8)
        elif file.suffix == ".token":
            found[str(file)] = file.read_bytes()
    return found
