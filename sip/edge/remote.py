"""What the edge's two programs are told and asked while they run."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ANSWER_S = 5.0
LONGEST_ANSWER = 1 << 20


class EdgeSilent(Exception):
    """A program doesn't answer, or says no."""


@dataclass(frozen=True)
class Ban:
    """An address from which nothing is taken; `why`: flood, scanner, passwords, unacknowledged, malformed."""

    address: str
    why: str
    since: datetime


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
        raise EdgeSilent(f"Kamailio, {command}: {answer['error'].get('message', answer['error'])}")
    return answer.get("result")


def bans(folder: Path) -> list[Ban]:
    """The newest first; raises EdgeSilent."""
    found = []
    for entry in kamailio(folder, "htable.dump ban"):
        for slot in entry["slot"]:
            why, _, at = str(slot["value"]).partition(" ")
            found.append(Ban(str(slot["name"]), why, datetime.fromtimestamp(int(at), UTC)))
    return sorted(found, key=lambda ban: ban.since, reverse=True)


def lift(folder: Path, address: str) -> bool:
    """Take from this address again; False where it isn't banned. Raises EdgeSilent."""
    if not any(ban.address == address for ban in bans(folder)):
        return False
    kamailio(folder, f"htable.delete ban {address}")
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
