"""What of a text may go into an archive that leaves the site: words that this package itself writes.

An allow-list and no search for secrets: a word passes where it stands in a message of our own code, a number
where it is short, a digest where it is one. A name, a path, a column, a value of a row, a host and a key are
none of these, wherever they come from, and become […].
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import wardround

GONE: Final = "[…]"
_WORD: Final = re.compile(r"[^\W_]+(?:[_'’-][^\W_]+)*")
_PARTS: Final = re.compile(r"\S+|\s+")
_DIGEST: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[+-]?\d{1,7}(?:\.\d+)?(?:e[+-]?\d{1,3})?%?")
"""Row numbers, counts and seconds; longer ones may be a name, others a date, a telephone or an address."""
_EDGES: Final = "'\"`()[]{}<>,;:.!?…–|="
_FRAME: Final = re.compile(r'File "[^"]*?[\\/]wardround[\\/]([\w\\/]+\.py)", line (\d+), in (\w+)')
_RAISED: Final = re.compile(r"^([A-Za-z_][\w.]*?(?:Error|Exception|Interrupt|Exit|Warning|Timeout))\b")
ROOMS: Final = ("core", "privacy", "strategies", "runtime", "training", "client")


@dataclass(frozen=True)
class Redactor:
    """Lets through what may be read by others.

    Attributes:
        known: Words beside those of our messages: the site's name, ids of its runs.
    """

    known: frozenset[str] = field(default=frozenset())

    def text(self, text: str) -> str:
        """The text with every part that is not known replaced; spaces and line breaks stay."""
        return "".join(part if part.isspace() else self._part(part) for part in _PARTS.findall(text))

    def value(self, value: Any) -> Any:
        """A value of plain JSON, its texts and keys redacted, its numbers as they are."""
        match value:
            case bool() | None | int() | float():
                return value
            case Mapping():
                return {self.text(str(key)): self.value(item) for key, item in value.items()}
            case list() | tuple():
                return [self.value(item) for item in value]
            case _:
                return self.text(str(value))

    def traceback(self, text: str) -> str:
        """Where in our own code it happened and the kind of error, never its words."""
        frames = [f"{place}:{line} in {name}" for place, line, name in _FRAME.findall(text)]
        kinds = [match[1] for line in text.splitlines() if (match := _RAISED.match(line))]
        return "; ".join([*frames, *kinds])

    def _part(self, part: str) -> str:
        core = part.strip(_EDGES)
        if not core:
            return part
        before, _, after = part.partition(core)
        return f"{before}{core if self._passes(core) else GONE}{after}"

    def _passes(self, core: str) -> bool:
        if core in self.known or _DIGEST.fullmatch(core) or _NUMBER.fullmatch(core):
            return True
        return core.lower() in vocabulary()


@cache
def vocabulary() -> frozenset[str]:
    """Words of the texts in this package's code, docstrings aside, and its names of settings and errors."""
    root = Path(next(iter(wardround.__path__)))
    return frozenset(
        word.lower()
        for room in ROOMS
        for path in sorted((root / room).rglob("*.py"))
        for word in _words(path)
    )


def _words(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from _WORD.findall(node.value)
            yield from (part.strip(_EDGES) for part in node.value.split())
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
