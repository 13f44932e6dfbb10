"""An adapter's config as Python holds it: a dict, a PEFT config object, or a file."""
from __future__ import annotations

import json
import os

from .errors import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# What PEFT writes or keeps for itself; a version that does not know a key can do without.
_NOT_NEEDED = frozenset(("auto_mapping", "peft_version", "peft_type", "base_model_name_or_path", "revision"))


def _plain(value: Any) -> Any:
    """What json.dumps does not know: sets are written sorted, as PEFT does; enums by value."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "value"):
        return value.value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    raise TypeError(type(value).__name__)


def _dump(values: Any) -> str:
    try:
        return json.dumps(dict(values), default=_plain)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise fail("USAGE", "the config cannot be written as JSON", "config", got=str(error)) from None


def _load(text: str) -> Any:
    return json.loads(text)


def _object_of(config: Any) -> Callable[[str], Any]:
    import inspect

    known = inspect.signature(type(config)).parameters

    def make(text: str) -> Any:
        values = json.loads(text)
        lost = [key for key, value in values.items() if key not in known and value and key not in _NOT_NEEDED]
        if lost:
            raise fail("CF_UNSUP", "this version of peft has no such field", ", ".join(lost),
                       hint="pass config.to_dict(), or update peft")
        return type(config)(**{key: value for key, value in values.items() if key in known})

    return make


def read(config: Any) -> tuple[str, Callable[[str], Any]]:
    """The config as JSON, and a function that makes the same kind of value of new JSON."""
    if isinstance(config, (str, bytes)) or hasattr(config, "__fspath__"):
        path = os.fsdecode(config)
        if os.path.isdir(path):
            path = os.path.join(path, "adapter_config.json")
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(), _load
        except (OSError, ValueError) as error:
            raise fail("IO_OPEN", "the config cannot be read", path, got=str(error)) from None
    if hasattr(config, "to_dict"):
        return _dump(config.to_dict()), _object_of(config)
    if hasattr(config, "keys"):
        return _dump(config), _load
    raise fail("USAGE", "not a config", "config", "a dict, an object of PEFT, or a path", type(config).__name__)
