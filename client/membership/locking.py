"""A passphrase on a site's keys: set, changed or taken off, for all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wardround.client.history.history import FOLDER as HISTORY
from wardround.client.history.history import KEY as HISTORY_KEY
from wardround.client.ledger.keys import KEY_FILE as LEDGER_KEY
from wardround.client.membership.site_folder import IDENTITY_KEY, KEYS, TRANSPORT_KEY, SiteFolder
from wardround.client.sealed_files import KEY_FILE as STORAGE_KEY
from wardround.core.errors import ConfigError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.files import write_atomic
from wardround.runtime.passphrases import Lock, is_locked, use_lock
from wardround.runtime.small_files import LARGEST_KEY, read_bounded

NAMES: Final = (IDENTITY_KEY, TRANSPORT_KEY, STORAGE_KEY)


def key_files(site: SiteFolder, *ledgers: Path) -> tuple[Path, ...]:
    """Every file of this site that holds a key, sorted.

    Args:
        site: Its folder.
        ledgers: Folder of its privacy ledger, whether or not it is there.
    """
    found = [path for path in (site.path / KEYS).rglob("*.key") if path.name in NAMES]
    others = (*(ledger / LEDGER_KEY for ledger in ledgers), site.path / HISTORY / HISTORY_KEY)
    found += [path for path in others if path.exists()]
    return tuple(sorted(found))


def locked_files(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """Those that are locked with a passphrase; raises StorageError."""
    return tuple(path for path in files if is_locked(read_bounded(path, LARGEST_KEY)))


def relock(files: tuple[Path, ...], present: Secret | None, new: Secret | None) -> int:
    """Lock files of keys with another passphrase, or with none. Each is whole, under the old one or the new.

    After a kill in between the same call goes on: what has the new one already stays. Nobody may use the keys
    meanwhile.

    Args:
        files: Of keys.
        present: What they are locked with; None: nothing.
        new: What they are to be locked with; None: nothing.

    Returns:
        How many were written.

    Raises:
        ConfigError: One is locked with neither; then none is written.
        StorageError: One cannot be read or written.
    """
    before, after = Lock(present), Lock(new)
    contents: dict[Path, bytes] = {}
    for path in files:
        data = read_bounded(path, LARGEST_KEY)
        if not is_locked(data):
            if new is not None:
                contents[path] = data
            continue
        if new is not None and after.opens(data) is not None:
            continue
        found = before.opens(data)
        if found is None:
            raise ConfigError(
                f"{path} does not open", found="another passphrase, or a damaged file",
                expected="the passphrase that it is locked with", remedy="nothing was changed; give that one",
            )  # fmt: skip
        contents[path] = found.reveal()
    for path, content in contents.items():
        write_atomic(path, after.locked(content), private=True)
    use_lock(after)
    return len(contents)
