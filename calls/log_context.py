"""Which call a line of the log is about.

A call's task sets it where it begins, and all that runs within it inherits it; lines of others about a call name it in
their message (`call %s`). tandem/log.py puts it into every line.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar

current_call: ContextVar[str] = ContextVar("tandem_call", default="")

_CALL = re.compile(r"\bcall %s")
_DIRECTIVE = re.compile(r"%(%?)")  # %% is none


def call_of(record: logging.LogRecord) -> str:
    """The id of the call that `record` is about, or nothing."""
    found = _CALL.search(record.msg) if isinstance(record.msg, str) else None
    if found is not None and isinstance(record.args, tuple):
        place = _DIRECTIVE.findall(record.msg[:found.start()]).count("")
        if place < len(record.args):
            return str(record.args[place])
    return current_call.get()
