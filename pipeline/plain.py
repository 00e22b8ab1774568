"""Settings as plain values: dataclasses to dictionaries and back, with errors that name the key.

Called by `pipeline.config`, and by whoever identifies work by its settings, or shows them.
"""

import dataclasses
import hashlib
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints


def to_plain(record: Any) -> Any:
    """Turn a configuration dataclass into dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(record):
        return {f.name: to_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    return [to_plain(item) for item in record] if isinstance(record, tuple) else record


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings with dotted names."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def hash_of(settings: Any) -> str:
    """Return twelve hexadecimal digits of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def from_plain(cls: type, values: Any, where: str) -> Any:
    """Build a configuration dataclass from plain values, checking keys and types."""
    if not isinstance(values, dict):
        raise ValueError(f"`{where}` must hold keys and values, got {values!r}")
    hints = get_type_hints(cls)
    unknown = sorted(str(key) for key in values if key not in hints)
    if unknown:
        known = ", ".join(hints)
        raise ValueError(f"unknown key `{_join(where, unknown[0])}`; known here are {known}")
    return cls(**{key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where)
    if get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"`{where}` must hold keys and values, got {value!r}")
        return {str(key): item for key, item in value.items()}
    if get_origin(hint) is tuple:
        if isinstance(value, str) and get_args(hint)[0] is str:
            return (value,)  # one string stands for a list of one
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{where}` must be a list, got {value!r}")
        return tuple(_convert(get_args(hint)[0], item, where) for item in value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"`{where}` must be a number, got {value!r}") from None
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"`{where}` must be of type {hint.__name__}, got {value!r}")
    return value


def set_dotted(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted setting; what `collect.vary` holds has dots in its own keys."""
    parents = path.split(".", 2) if path.startswith("collect.vary.") else path.split(".")
    *parents, leaf = parents
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"`{path}` goes through `{parent}`, which holds a value")
    node[leaf] = value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
