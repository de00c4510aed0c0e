"""Where a page of rows ended, as a cursor that programs give back to get the next one (pure)."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

LONGEST = 400  # characters
_MOST = 2**63


class BadCursor(ValueError):
    """It isn't a cursor of ours."""


def cursor(*key: datetime | str | int) -> str:
    """Of the row with this key."""
    told = [value.isoformat() if isinstance(value, datetime) else value for value in key]
    return base64.urlsafe_b64encode(json.dumps(told, ensure_ascii=False).encode()).decode().rstrip("=")


def place(given: str, *kinds: type) -> tuple[Any, ...]:
    """The key that `cursor` was given, of these kinds. Raises BadCursor."""
    try:
        if len(given) > LONGEST:
            raise ValueError
        told = json.loads(base64.b64decode(given + "=" * (-len(given) % 4), "-_", validate=True))
        if not isinstance(told, list) or len(told) != len(kinds):
            raise ValueError
        return tuple(_read(value, kind) for value, kind in zip(told, kinds, strict=True))
    except (ValueError, RecursionError):
        raise BadCursor("it isn't a cursor of ours") from None


def _read(value: object, kind: type) -> datetime | str | int:
    if kind is datetime and isinstance(value, str):
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError
        return at
    if kind is str and isinstance(value, str) and "\0" not in value:
        value.encode()
        return value
    if kind is int and type(value) is int and -_MOST <= value < _MOST:
        return value
    raise ValueError
