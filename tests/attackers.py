"""Who floods the edge, by sipp, and a registered caller meanwhile, by baresip."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from call_peers import SCENARIOS, baresip, free_port
from edge_bench import PASSWORD, USER, Edge

from media.audio import SAMPLE_RATE
from sip.edge import remote
from sip.phone import measure_return


@dataclass(frozen=True)
class Heard:
    """What a caller notices of a call to the echo."""

    set_up_s: float  # baresip's own start included
    delay_ms: float
    likeness: float


async def registered_call(edge: Edge, user: str, play: Path, folder: Path, seconds: float) -> Heard:
    """A user's phone registers, calls, and listens to what comes back, until `seconds` after its start."""
    account = (f"<sip:{USER}@127.0.0.1:{edge.port}>;auth_user={USER};auth_pass={PASSWORD};regint=60;"
               "audio_codecs=PCMU/8000/1")
    sent, received = await baresip(edge.uri(user), play, folder, seconds, account=account)
    delay_ms, likeness = measure_return(sent, received)
    return Heard(seconds - len(sent) / SAMPLE_RATE, delay_ms, likeness)


@contextlib.asynccontextmanager
async def attacking(edge: Edge, scenario: str, folder: Path, *options: str, source: str, rate: int
                    ) -> AsyncIterator[Path]:
    """`rate` calls a second from the address `source`, for as long as this is open; its messages go to what is
    yielded, where the options want them."""
    messages = folder / f"{scenario}.attack"
    messages.touch()
    process = await asyncio.create_subprocess_exec(  # whose processors elsewhere are their own
        "nice", "-n", "5", "sipp", f"127.0.0.1:{edge.port}", "-sf", str(SCENARIOS / f"{scenario}.xml"), "-s",
        "attacked", "-i", source, "-p", str(free_port()), "-r", str(rate), "-m", "1000000", "-l", "1000000", "-nostdin",
        "-message_file", str(messages), *options, cwd=folder, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL)
    try:
        yield messages
        assert process.returncode is None, "the attack is over already"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def banned(edge: Edge) -> dict[str, str]:
    """Why which address is."""
    return {ban.address: ban.why for ban in remote.bans(edge.folder / "edge", 300)}


def counted(edge: Edge, name: str) -> int:
    """One of Kamailio's statistics, such as `sl:407_replies`."""
    return int(remote.kamailio(edge.folder / "edge", f"stats.fetchn {name}")[name.replace(":", ".")])
