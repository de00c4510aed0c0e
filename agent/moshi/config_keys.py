"""Reading a config's keys one by one, so that what is unknown, missing or unsupported can be named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """One line that names the key and what is wrong with it."""


class Keys:
    """A mapping that knows which of its keys were read, so that the rest can be named."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._left = dict(config)
        self._where = where

    @property
    def empty(self) -> bool:
        return not self._left

    def end(self) -> None:
        if self._left:
            raise ConfigError(f"{self._where}: unknown key {sorted(self._left)[0]!r}")

    def rename(self, old: str, new: str) -> None:
        if old in self._left:
            self._left[new] = self._left.pop(old)

    def skip(self, key: str, *allowed: Any) -> None:
        value = self._left.pop(key, None)
        if allowed and value is not None and value not in allowed:
            raise ConfigError(f"{self._where}: {key} {value!r} is not supported, only {allowed[0]!r}")

    def only(self, key: str, expected: Any, missing: Any = None) -> None:
        value = self._left.pop(key, missing)
        if value != expected:
            raise ConfigError(f"{self._where}: {key} {value!r} is not supported, only {expected!r}")

    def objects(self, key: str, values: tuple[type, ...] = (dict,)) -> Mapping[str, Any]:
        """A mapping by name, {} where there is none."""
        found = self._left.pop(key, None) or {}
        if not isinstance(found, Mapping) or not all(isinstance(value, values) for value in found.values()):
            raise ConfigError(f"{self._where}: {key} must be an object of named entries")
        return found

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._take(key)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{self._where}: {key} must be a list of words")
        return tuple(value)

    def choice(self, key: str, allowed: Any, default: Any) -> Any:
        value = self._left.pop(key, default)
        if value not in allowed:
            raise ConfigError(f"{self._where}: {key} {value!r} is not supported, only {next(iter(allowed))!r}")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._take(key)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._where}: {key} must be an object")
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._left.pop(key, default) if default is not None else self._take(key)
        return self._integer(key, value, least)

    def optional_integer(self, key: str) -> int | None:
        value = self._left.pop(key, None)
        return None if value is None else self._integer(key, value, 1)

    def integers(self, key: str, least: int = 1) -> tuple[int, ...]:
        value = self._take(key)
        if not isinstance(value, list | tuple) or not value:
            raise ConfigError(f"{self._where}: {key} must be a list of whole numbers")
        return tuple(self._integer(key, entry, least) for entry in value)

    def optional_integers(self, key: str) -> tuple[int, ...] | None:
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.integers(key, least=0)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._left.pop(key, default) if default is not None else self._take(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"{self._where}: {key} must be a positive number, not {value!r}")
        return float(value)

    def _integer(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{self._where}: {key} must be a whole number from {least} on, not {value!r}")
        return value

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise ConfigError(f"{self._where}: {key} is missing")
        return self._left.pop(key)
