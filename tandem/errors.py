"""What a user can mend is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Ends a command with its text as the one line that is printed, and exit code 1."""


@contextmanager
def told_in_one_line(*errors: type[Exception]) -> Iterator[None]:
    """Turn these errors, which carry such a line, into a UserError."""
    try:
        yield
    except errors as error:
        raise UserError(str(error)) from None
