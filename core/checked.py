"""Checked values: immutable models that are strict about their keys, and faults that name their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from wardround.core.errors import ConfigError, nearest


class Frozen(BaseModel):
    """Immutable, and strict about unknown keys; NaN and infinity are no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, without what was computed from the original's values, its digest above all."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


def invalid(what: str, error: ValidationError, known: dict[str, list[str]] | None = None) -> ConfigError:
    """A ConfigError that lists every fault of a validation, without the values that were given."""
    faults = []
    remedies = []
    for fault in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in fault["loc"]) or what
        faults.append(f"{place}: {fault['msg'].removeprefix('Value error, ')}")
        if fault["type"] == "extra_forbidden" and known is not None:
            guess = nearest(str(fault["loc"][-1]), _known_in(known, fault["loc"][:-1]))
            if guess:
                remedies.append(f"did you mean {guess!r} instead of {fault['loc'][-1]!r}?")
    return ConfigError(f"faults in the {what}", found="; ".join(faults), remedy=" ".join(remedies) or None)


def _known_in(known: dict[str, list[str]], section: tuple[int | str, ...]) -> list[str]:
    """Keys of a section; `*` stands for a name that a person chose (`data.sites.*`)."""
    path = ".".join(map(str, section))
    chosen = ".".join([*map(str, section[:-1]), "*"])
    return known.get(path) or known.get(chosen, [])


def known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    """Dotted section → its known keys, for proposing the nearest one."""
    table = {prefix: list(model.model_fields)}
    for name, field in model.model_fields.items():
        place = f"{prefix}.{name}" if prefix else name
        if getattr(field.annotation, "__origin__", None) is dict:
            place += ".*"
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                table.update(known_keys(candidate, place))
    return table


def parse_options(model: type[BaseModel], options: dict[str, Any], what: str) -> BaseModel:
    """Check an `options` mapping against the model of the file that it belongs to.

    Raises:
        ConfigError: An unknown key (the nearest known one is named) or a wrong value.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        raise invalid(what, error, known_keys(model)) from error
