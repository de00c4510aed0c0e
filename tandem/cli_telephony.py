"""The command line's group `telephony`, and a hand on a call's telephone line: `call place`, `press`, `transfer`, …"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calls.settings import load_settings
from tandem.cli_calls import CallId, call, give_control

telephony = typer.Typer(help="Trunks, whose calls we take and when, whom we may call.", no_args_is_help=True,
                        rich_markup_mode=None)

_Document = Annotated[Path, typer.Argument(help="the document: JSON, or TOML in a .toml file; - for stdin")]


@telephony.command("show")
def show() -> None:
    """Print the newest version as JSON, without its passwords."""
    from tandem.telephony_commands import show

    show(load_settings())


@telephony.command("set")
def set_(
    document: _Document,
    over: Annotated[int | None, typer.Option(min=0, help="the version that it shall take the place of; "
                                             "default: whichever is the newest")] = None,
) -> None:
    """Keep a document as the newest version. SIP processes take it over within seconds; calls go on."""
    from tandem.telephony_commands import save

    save(load_settings(), document, over)


@telephony.command("check")
def check(document: _Document) -> None:
    """Whether a document is good: nothing is kept."""
    from tandem.telephony_commands import check

    check(document)


@telephony.command("trunks")
def trunks() -> None:
    """How trunks do, in each SIP process: registered or not, the SIP status, the next try."""
    from tandem.telephony_commands import list_trunks

    list_trunks(load_settings())


@call.command("place")
def place(
    to: Annotated[str, typer.Argument(help="a SIP address, or a number at a trunk")],
    agent: Annotated[str, typer.Option(help="who talks")] = "agent",
    trunk: Annotated[str, typer.Option(help="by which a number is called; default: the first")] = "",
    caller_id: Annotated[str, typer.Option(help="as whom we call")] = "",
    ring: Annotated[float | None, typer.Option(min=1, max=180, help="seconds after which we give up")] = None,
    message: Annotated[str, typer.Option(help="said where a machine answers, after its tone; then we hang up")] = "",
    hang_up_on_machine: Annotated[bool, typer.Option("--hang-up-on-machine")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="until it is known whether somebody answers")] = False,
) -> None:
    """Have a call made to somebody whom the telephony document lets us call; prints its id."""
    from calls.dialling import Dial
    from tandem.control_command import whoever_this_is
    from tandem.telephony_commands import place

    place(load_settings(), Dial(to, agent, trunk, caller_id, ring, "hang_up" if hang_up_on_machine else "talk", message,
                                by=whoever_this_is()), wait=wait)


@call.command("press")
def press(call_id: CallId, keys: Annotated[str, typer.Argument(help="0-9, *, #, A-D")]) -> None:
    """Press keys of the telephone for the agent."""
    give_control(call_id, "keys", text=keys)


@call.command("transfer")
def transfer(
    call_id: CallId, to: Annotated[str, typer.Argument(help="a SIP address that we may call")],
    first: Annotated[str, typer.Option(help="what the agent tells the human first, while the caller waits")] = "",
) -> None:
    """Hand the caller on to a human, and tell what became of it."""
    give_control(call_id, "transfer", text=first, to=to)


@call.command("hold-line")
def hold_line(call_id: CallId) -> None:
    """Put the caller on hold, by a re-INVITE. (`call hold` holds the agent's tongue.)"""
    give_control(call_id, "hold_call")


@call.command("resume-line")
def resume_line(call_id: CallId) -> None:
    """Take the caller off hold."""
    give_control(call_id, "resume_call")
