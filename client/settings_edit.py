"""Changes a value in a site's `site.yaml`, and not one character besides: the file is its people's.

PyYAML says where each value begins and ends in the text; what is changed is written between those marks, so
that comments, order, quotes and alignment stay as they are. (ruamel.yaml's round trip keeps comments, but
writes the rest of the file anew.) The outcome is read again and held against what was meant: an alias or
another construction that the marks do not tell apart is refused, never guessed at.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from wardround.client.site_settings import parse_site_settings
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.files import write_atomic

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./ ")

_WIDE: Final = 2**30
"""Characters of a line: nothing is broken over two."""


def changed_text(text: str, changes: Mapping[str, Any]) -> str:
    """The text with some of its sections set to new values.

    A section that is a block of lines is changed line by line, and keeps the comments in it; any other value
    is replaced as a whole, and a section that is not there is written at the end.

    Args:
        text: Of the file.
        changes: Section → its whole new value.

    Raises:
        ConfigError: Not YAML of sections, or written in a way that cannot be changed safely; what to write by
            hand is said.
    """
    wanted = _values(text) | dict(changes)
    for section, value in changes.items():
        node = _root(text)
        edits = enumerate(_set(text, node, section, value, ""))
        # From the end, so that the places before it stay right; of one place the innermost comes first.
        for _, (start, end, put) in sorted(edits, key=lambda edit: (edit[1][0], edit[0]), reverse=True):
            text = text[:start] + put + text[end:]
    try:
        reached = _values(text)
    except ConfigError:
        reached = {}
    if reached != wanted:
        raise ConfigError(
            "the file is written in a way that this command cannot change safely",
            found="an alias, or a value that spans others", expected="plain sections",
            remedy="write it by hand: " + "; ".join(f"{name}: {written(v)}" for name, v in changes.items()),
        )  # fmt: skip
    return text


def change_settings(
    path: Path,
    changes: Mapping[str, Any],
    *,
    ask: Callable[[str], bool] | None,
    show: Callable[[str], None],
) -> bool:
    """Show what would change in a `site.yaml`, ask, and put the new file in its place as a whole.

    Args:
        path: The file; what a link points to is changed, not the link.
        changes: As of `changed_text`.
        ask: Puts a question to a person; None asks nothing.
        show: Takes the difference, a line each.

    Returns:
        Whether there was anything to change.

    Raises:
        ConfigError: As `changed_text`; the outcome would be no settings; the person says no; or somebody
            changed the file meanwhile.
        StorageError: It cannot be read or written; the old file stands.
    """
    path = path.resolve()
    before = _read(path)
    try:
        text = before.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8", remedy="save it as UTF-8") from error
    after = changed_text(text, changes)
    parse_site_settings(after.encode(), path)
    if after == text:
        return False
    for line in difference(text, after, path.name):
        show(line)
    if ask is not None and not ask(f"Write this to {path}?"):
        raise ConfigError(f"{path.name} was not changed", remedy="nothing was written")
    if _read(path) != before:
        raise ConfigError(f"{path} was changed by somebody else meanwhile", remedy="run the command again")
    write_atomic(path, after.encode(), private=True)
    return True


def difference(before: str, after: str, name: str) -> Sequence[str]:
    """The lines that go and come, as `diff -u` has them, with one line around each."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), name, f"{name} (new)", n=1, lineterm=""
    )
    return list(lines)


def written(value: Any) -> str:
    """A value on one line of YAML."""
    match value:
        case None:
            return "null"
        case Mapping():
            inside = ", ".join(f"{written(str(key))}: {written(item)}" for key, item in value.items())
            return "{" + inside + "}"
        case list() | tuple():
            return "[" + ", ".join(map(written, value)) + "]"
        case str():
            return _text(value)
        case _:
            return json.dumps(value)


def _text(value: str) -> str:
    """As it stands where nothing in it means anything to YAML, else in quotes."""
    bare = (
        bool(value) and value == value.strip() and set(value) <= _PLAIN and value[0] not in "-./ 0123456789"
    )
    bare = bare and yaml.safe_load(value) == value
    if bare:
        return value
    return str(yaml.safe_dump(value, default_style='"', allow_unicode=True, width=_WIDE)).strip()


Edit = tuple[int, int, str]
"""From, to, and what stands there instead."""


def _set(text: str, mapping: yaml.MappingNode, key: str, value: Any, indent: str) -> list[Edit]:
    """What sets a key of a block mapping."""
    found = next(((k, v) for k, v in mapping.value if k.value == key), None)
    if found is None:
        place, lead = _after(text, mapping)
        return [(place, place, f"{lead}{indent}{written(key)}: {written(value)}\n")]
    name, node = found
    if _plain_value(node) == value:
        return []
    block = not getattr(node, "flow_style", True)
    if block and isinstance(node, yaml.MappingNode) and isinstance(value, Mapping) and value:
        return _set_within(text, node, value)
    if block and isinstance(node, yaml.SequenceNode) and isinstance(value, list):
        inside = list(zip(node.value, value, strict=False))
        if len(value) >= len(node.value) and all(_alike(item, part) for item, part in inside):
            edits = [edit for item, part in inside for edit in _item(text, item, part)]
            return [*edits, *_append(text, node, value[len(inside) :])]
    if block and not isinstance(node, yaml.ScalarNode):
        # All of its lines go; the value stands beside its key.
        return [(name.end_mark.index, _end(text, node), f": {written(value)}")]
    gap = "" if node.start_mark.index > name.end_mark.index + 1 else " "
    return [(node.start_mark.index, _end(text, node), gap + written(value))]


def _alike(node: yaml.Node, value: Any) -> bool:
    """Whether an item of a list stays, or can be changed key by key."""
    block = isinstance(node, yaml.MappingNode) and not node.flow_style and isinstance(value, Mapping)
    return block or _plain_value(node) == value


def _item(text: str, node: yaml.Node, value: Any) -> list[Edit]:
    if isinstance(node, yaml.MappingNode) and _plain_value(node) != value:
        return _set_within(text, node, value)
    return []


def _set_within(text: str, node: yaml.MappingNode, value: Mapping[str, Any]) -> list[Edit]:
    """Key by key: those that differ, those that are new, those that go with their lines."""
    indent = " " * node.start_mark.column
    edits: list[Edit] = []
    for key, _ in node.value:
        if key.value not in value:
            start = text.rfind("\n", 0, key.start_mark.index) + 1
            last = next(v for k, v in node.value if k is key)
            edits.append((start, _line_end(text, _end(text, last)), ""))
    new = [key for key in value if all(k.value != key for k, _ in node.value)]
    for key in value:
        if key not in new:
            edits += _set(text, node, key, value[key], indent)
    if new:
        place, lead = _after(text, node)
        lines = "".join(f"{indent}{written(key)}: {written(value[key])}\n" for key in new)
        edits.append((place, place, lead + lines))
    return edits


def _append(text: str, node: yaml.SequenceNode, items: Sequence[Any]) -> list[Edit]:
    """More items at the end of a block list, as its first one is written."""
    if not items:
        return []
    start = text.rfind("\n", 0, node.start_mark.index) + 1
    indent = text[start : node.start_mark.index]
    place, lead = _after(text, node)
    lines = ""
    for item in items:
        if isinstance(item, Mapping):
            pairs = [f"{written(key)}: {written(part)}" for key, part in item.items()]
            lines += f"{indent}- " + f"\n{indent}  ".join(pairs) + "\n"
        else:
            lines += f"{indent}- {written(item)}\n"
    return [(place, place, lead + lines)]


def _after(text: str, node: yaml.Node) -> tuple[int, str]:
    """Where a line after a block goes, and the line break that is missing before it."""
    place = _line_end(text, _end(text, node))
    return place, "" if not place or text[place - 1] == "\n" else "\n"


def _line_end(text: str, place: int) -> int:
    """The beginning of the next line, or the end of the text."""
    found = text.find("\n", place)
    return len(text) if found < 0 else found + 1


def _end(text: str, node: yaml.Node) -> int:
    """Where a value ends; PyYAML puts the end of a block after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return max(_end(text, part) for part in (last if isinstance(last, tuple) else (last,)))
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip()) if end > start else end


def _root(text: str) -> yaml.MappingNode:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            "the file is not YAML", found=f"line {mark.line + 1}" if mark else type(error).__name__
        ) from error
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        raise ConfigError("the file has no sections to change", expected="lines of SECTION: VALUE")
    return node


def _values(text: str) -> dict[str, Any]:
    _root(text)
    return dict(yaml.safe_load(text))


def _plain_value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror, expected="the site's settings",
            remedy="`wardround site join` writes a commented beginning",
        ) from error  # fmt: skip
