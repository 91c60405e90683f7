"""One small registry for every kind of thing that plugs in: tasks, sources, adapters, strategies.

A built-in is one file in its room's folder: the name is the file's name and the file assigns the
object to one agreed attribute. Other packages add theirs by entry point. A researcher's own
``module:attribute`` is taken only where the caller says so (a simulation; never a site).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from wardround.core.errors import ConfigError, unknown_name

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Finds implementations by name.

    Args:
        kind: What they are, for messages: "task".
        package: Package whose modules are the built-ins, one each.
        attribute: Name that each module assigns its implementation to.
        group: Entry point group for implementations of other packages.
        not_names: Modules of the package that are no implementations.
    """

    kind: str
    package: str
    attribute: str
    group: str
    not_names: frozenset[str] = frozenset({"contract"})

    def names(self) -> list[str]:
        """Every name that `get` takes, sorted."""
        return sorted(set(self._builtin()) | set(self._foreign()))

    def get(self, name: str, *, allow_dotted: bool = False) -> T:
        """The implementation of that name.

        Raises:
            ConfigError: The name is unknown (the nearest known one is named), two packages claim it,
                or a dotted path was given where none is allowed or cannot be imported.
        """
        if ":" in name:
            return self._dotted(name, allowed=allow_dotted)
        if name in self._builtin():
            module = importlib.import_module(f"{self.package}.{name}")
            return cast("T", getattr(module, self.attribute))
        foreign = self._foreign()
        if name in foreign:
            return cast("T", foreign[name].load())
        raise unknown_name(self.kind, name, self.names())

    def require(self, name: str) -> None:
        """Refuse an unknown name without importing the implementation; a dotted path is left to `get`.

        Raises:
            ConfigError: The name is unknown; the nearest known one is named.
        """
        if ":" not in name and name not in self._builtin() and name not in self._foreign():
            raise unknown_name(self.kind, name, self.names())

    def _builtin(self) -> list[str]:
        folder = importlib.import_module(self.package)
        return [
            module.name
            for module in pkgutil.iter_modules(folder.__path__)
            if module.name not in self.not_names and not module.name.startswith("_")
        ]

    def _foreign(self) -> dict[str, importlib.metadata.EntryPoint]:
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            if point.name in found and point.value != found[point.name].value:
                raise ConfigError(
                    f"two packages provide the {self.kind} {point.name!r}",
                    found=f"{found[point.name].value} and {point.value}",
                    remedy="uninstall one of them",
                )
            found[point.name] = point
        return found

    def _dotted(self, name: str, *, allowed: bool) -> T:
        if not allowed:
            raise ConfigError(
                f"the {self.kind} {name!r} is a path to code, which is not taken here",
                expected="one of " + ", ".join(self.names()),
                remedy=f"provide it by the entry point group {self.group!r} of an installed package",
            )
        module_name, _, attribute = name.partition(":")
        try:
            return cast("T", getattr(importlib.import_module(module_name), attribute))
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"cannot import the {self.kind} {name!r}",
                found=f"{type(error).__name__}: {error}",
                expected="an importable module:attribute",
                remedy="start the command in the module's folder, or install it",
            ) from error
