"""Messages as plain values for `--json`: every field by its name, whole numbers as numbers."""

from __future__ import annotations

import base64
import math
from typing import Any


def plain(message: Any) -> dict[str, Any]:
    """A message as JSON values; an unset optional field is None, a number that is not finite as well."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): _value(item) for key, item in sorted(value.items())}
    if field.is_repeated:
        return [_value(item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(value)


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else plain(value)
