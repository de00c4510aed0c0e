"""The command line's groups `call`, `key` and `user`: what was said in calls, a hand on those that run, who may."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calls.settings import load_settings
from tandem.errors import UserError

call = typer.Typer(help="What was said in calls, and an operator's hand on those that run.", no_args_is_help=True,
                   rich_markup_mode=None)
key = typer.Typer(help="Keys with which programs use the API.", no_args_is_help=True, rich_markup_mode=None)
user = typer.Typer(help="Operators: who may use the dashboard.", no_args_is_help=True, rich_markup_mode=None)


@call.command("list")
def call_list(limit: Annotated[int, typer.Option(min=1, max=1000, help="newest calls")] = 20) -> None:
    """The newest calls, a line each."""
    from tandem.call_commands import list_calls

    list_calls(load_settings(), limit)


@call.command("show")
def call_show(call_id: Annotated[str, typer.Argument(help="a call's id, from `tandem call list`")]) -> None:
    """One call: its parties, times and end, and what was said when."""
    from tandem.call_commands import show_call

    show_call(load_settings(), call_id)


CallId = Annotated[str, typer.Argument(help="a call that runs: its id, from `tandem call list`")]


def give_control(call_id: str, action: Any, **what: Any) -> None:
    from calls.controls import Control
    from tandem import control_command

    control_command.give(load_settings(), Control(call_id, action, by=control_command.whoever_this_is(), **what))


@call.command("speak")
def call_speak(call_id: CallId) -> None:
    """Make the agent speak now: EPAD is forced. Ends a hold."""
    give_control(call_id, "speak")


@call.command("hold")
def call_hold(
    call_id: CallId,
    mute: Annotated[bool, typer.Option("--mute", help="cut its sound at once, also in the middle of a word")] = False,
) -> None:
    """Make the agent hold its tongue, and listen, until it is released: PAD is forced."""
    give_control(call_id, "hold", mute=mute)


@call.command("say")
def call_say(call_id: CallId, text: Annotated[str, typer.Argument(help="the sentence")]) -> None:
    """Make the agent say a sentence, word for word, in its own voice."""
    give_control(call_id, "say", text=text)


@call.command("whisper")
def call_whisper(call_id: CallId, text: Annotated[str, typer.Argument(help="the sentence")]) -> None:
    """Feed the agent a sentence as silent text, as if it had thought it (experimental)."""
    give_control(call_id, "whisper", text=text)


@call.command("release")
def call_release(call_id: CallId) -> None:
    """End a hold: the agent is free again."""
    give_control(call_id, "release")


@call.command("reprime")
def call_reprime(call_id: CallId) -> None:
    """Begin the agent anew, with its role and the caller's last seconds: for one that talks nonsense."""
    give_control(call_id, "reprime")


@call.command("set")
def call_set(
    call_id: CallId,
    text_temperature: Annotated[float | None, typer.Option(min=0, max=10)] = None,
    audio_temperature: Annotated[float | None, typer.Option(min=0, max=10)] = None,
    pad_bias: Annotated[float | None, typer.Option(min=-100, max=100, help="above 0 it speaks less")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.1, max=10)] = None,
) -> None:
    """Change how the agent's tokens are drawn while it talks."""
    from calls.wire import SamplingSettings

    give_control(call_id, "set", sampling=SamplingSettings(
        text_temperature=text_temperature, audio_temperature=audio_temperature, pad_bias=pad_bias,
        repetition_penalty=repetition_penalty))


@call.command("hangup")
def call_hang_up(call_id: CallId) -> None:
    """End the call, when what the agent has said is heard."""
    give_control(call_id, "hang_up")


@call.command("record")
def call_record(call_id: CallId, what: Annotated[Literal["pause", "resume"], typer.Argument()]) -> None:
    """Pause the call's recording, or go on with it."""
    give_control(call_id, f"{what}_recording")


@key.command("add")
def key_add(
    name: Annotated[str, typer.Argument(help="whose it is, as timelines tell it")],
    scope: Annotated[list[str], typer.Option(help="what it may do: calls:read, calls:control; may be given again")],
) -> None:
    """Make a key. It is printed once, and kept as a hash."""
    from calls.api_keys import Scope
    from tandem.key_commands import make_key

    if unknown := sorted(set(scope) - {known.value for known in Scope}):
        raise UserError(f"--scope {unknown[0]}: give some of {', '.join(known.value for known in Scope)}")
    make_key(load_settings(), name, tuple(Scope(one) for one in scope))


@key.command("list")
def key_list() -> None:
    """The keys there are, without themselves."""
    from tandem.key_commands import list_keys

    list_keys(load_settings())


@key.command("revoke")
def key_revoke(id: Annotated[str, typer.Argument(help="a key's id, from `tandem key list`")]) -> None:
    """From now on a key doesn't serve."""
    from tandem.key_commands import revoke_key

    revoke_key(load_settings(), id)


@user.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="with which they sign in, and by which timelines tell of them")],
    role: Annotated[Literal["viewer", "operator", "admin"], typer.Option(
        help="viewer: sees and hears; operator: and has a hand on calls; admin: and says who may")] = "viewer",
) -> None:
    """Make an operator. The password is asked for, or the first line of stdin."""
    from calls.operators import Role
    from tandem.user_commands import make_user

    make_user(load_settings(), name, Role(role))


@user.command("list")
def user_list() -> None:
    """The operators there are."""
    from tandem.user_commands import list_users

    list_users(load_settings())


@user.command("password")
def user_password(name: Annotated[str, typer.Argument(help="an operator's name")]) -> None:
    """Give an operator another password, and sign them out everywhere. It is asked for, or the first line of stdin."""
    from tandem.user_commands import change_password

    change_password(load_settings(), name)


@user.command("sessions")
def user_sessions(name: Annotated[str, typer.Argument(help="an operator's name")]) -> None:
    """The browsers in which an operator is signed in."""
    from tandem.user_commands import list_sessions

    list_sessions(load_settings(), name)


@user.command("sign-out")
def user_sign_out(name: Annotated[str, typer.Argument(help="an operator's name")]) -> None:
    """Sign an operator out everywhere."""
    from tandem.user_commands import sign_out

    sign_out(load_settings(), name)


@user.command("reset-second-factor")
def user_reset_second_factor(name: Annotated[str, typer.Argument(help="an operator's name")]) -> None:
    """For who has lost their phone and recovery codes: name and password are enough again."""
    from tandem.user_commands import reset_second_factor

    reset_second_factor(load_settings(), name)


@user.command("disable")
def user_disable(name: Annotated[str, typer.Argument(help="an operator's name, from `tandem user list`")]) -> None:
    """From now on they can't sign in, and are signed in nowhere."""
    from tandem.user_commands import disable_user

    disable_user(load_settings(), name)


@call.command("replay")
def call_replay(
    call_id: Annotated[str, typer.Argument(help="a call's id, from `tandem call list`")],
    out: Annotated[Path, typer.Argument(help="where the agent's sound goes, a .wav")],
    what_if: Annotated[float | None, typer.Option(min=0, help="second from which on the model is free again")] = None,
    speak: Annotated[bool, typer.Option("--speak", help="make it speak there")] = False,
    hold: Annotated[bool, typer.Option("--hold", help="hold its tongue from there on")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of its draws from there on")] = 0,
    text_temperature: Annotated[float | None, typer.Option(min=0, max=5, help="from there on")] = None,
    pad_bias: Annotated[float, typer.Option(min=-100, max=100, help="from there on; above 0 it speaks less")] = 0.0,
) -> None:
    """A call's agent again, from its token log; or what it would have said from some second on."""
    from agent.replay import Hand
    from tandem.replay_command import replay_call

    if speak and hold:
        raise UserError("--speak and --hold: give one of them")
    hand = Hand.SPEAK if speak else Hand.HOLD if hold else Hand.NONE
    replay_call(load_settings(), call_id, out, what_if, hand, seed, text_temperature, pad_bias)
