"""What the edge's two programs are told and asked while they run."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from calls.bans import MOST, Ban

ANSWER_S = 5.0
LONGEST_ANSWER = 1 << 20


class EdgeSilent(Exception):
    """A program doesn't answer."""


class EdgeRefuses(EdgeSilent):
    """Kamailio says no."""


class TooManyBans(EdgeSilent):
    """More than MOST: Kamailio's answer is one datagram, of 128 KiB at most."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} addresses are banned, more than can be listed")
        self.count = count


def kamailio(folder: Path, command: str, answer_s: float = ANSWER_S) -> Any:
    """Carry out an RPC command, such as `dispatcher.reload`; raises EdgeSilent."""
    method, *parameters = command.split()
    ours = folder / f"control.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(str(ours))
            client.settimeout(answer_s)
            client.connect(str(folder / "control"))
            client.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": parameters, "id": 1}).encode())
            answer = json.loads(client.recv(LONGEST_ANSWER))
    except (OSError, ValueError) as error:
        raise EdgeSilent(f"Kamailio: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            ours.unlink()
    if "error" in answer:
        raise EdgeRefuses(f"Kamailio, {command}: {answer['error'].get('message', answer['error'])}")
    return answer.get("result")


def bans(folder: Path, ban_s: float, answer_s: float = ANSWER_S) -> list[Ban]:
    """The newest first, each for `ban_s` from its beginning; raises TooManyBans and EdgeSilent."""
    tables = {str(table["name"]): int(table["all"]) for table in kamailio(folder, "htable.stats", answer_s)}
    if tables["ban"] > MOST:
        raise TooManyBans(tables["ban"])
    found = []
    for entry in kamailio(folder, "htable.dump ban", answer_s):
        for slot in entry["slot"]:
            why, _, at = str(slot["value"]).partition(" ")
            since = datetime.fromtimestamp(int(at), UTC)
            found.append(Ban(str(slot["name"]), why, since, since + timedelta(seconds=ban_s)))
    return sorted(found, key=lambda ban: ban.since, reverse=True)


def lift(folder: Path, address: str, answer_s: float = ANSWER_S) -> bool:
    """Take from this address again, and forget what was counted against it; False where it isn't banned. Raises
    EdgeSilent."""
    try:
        kamailio(folder, f"htable.delete ban {address}", answer_s)
    except EdgeRefuses:
        return False
    for counts in ("rate", "failed", "malformed"):
        with contextlib.suppress(EdgeRefuses):  # there is nothing
            kamailio(folder, f"htable.delete {counts} {address}", answer_s)
    return True


def rtpengine_answers(host: str, port: int, answer_s: float = 0.5) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(answer_s)
        try:
            client.connect((host, port))
            client.send(b"1 d7:command4:pinge")
            return b"4:pong" in client.recv(4096)
        except OSError:
            return False
