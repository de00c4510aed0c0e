"""The `tandem` command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from calls.settings import Settings, SettingsError, load_settings
from tandem import cli_calls, cli_configuration, cli_telephony, cli_train, log
from tandem.errors import UserError

app = typer.Typer(
    help="Full-duplex voice agents on the phone and the web, with Moshi.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
model = typer.Typer(help="Try and check models.", no_args_is_help=True, rich_markup_mode=None)
bench = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)
sip = typer.Typer(help="Run the SIP bridge, or what stands before it.", rich_markup_mode=None)
db = typer.Typer(help="The database.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(model, name="model")
app.add_typer(cli_calls.call, name="call")
app.add_typer(cli_telephony.telephony, name="telephony")
app.add_typer(cli_calls.key, name="key")
app.add_typer(cli_calls.user, name="user")
app.add_typer(cli_configuration.agent, name="agent")
app.add_typer(cli_configuration.number, name="number")
app.add_typer(cli_configuration.retention, name="retention")
app.add_typer(cli_configuration.webhook, name="webhook")
app.add_typer(cli_train.train, name="train")
app.add_typer(bench, name="bench")
app.add_typer(db, name="db")
app.add_typer(sip, name="sip")


Weights = Annotated[Literal["auto", "int8", "fp8"], typer.Option(help="linear maps in 8 bits")]
KeysValues = Annotated[Literal["auto", "int8", "fp8"], typer.Option("--kv", help="keys and values in 8 bits")]


def _start(role: str) -> Settings:
    settings = load_settings()
    log.configure(role, settings.log_level, settings.log_format)
    return settings


def _role(name: str, help_text: str, module: str, function: str) -> None:
    """A command that runs one role; what it imports is heavy, so it waits until it is asked for."""

    def command() -> None:
        settings = _start(name)
        getattr(importlib.import_module(module), function)(settings)

    app.command(name, help=help_text)(command)


_role("serve", "Run everything on this machine.", "tandem.serve", "serve")
_role("worker", "Run a worker: the model, for many calls together.", "tandem.roles", "worker")
_role("webrtc", "Run the WebRTC bridge: calls from browsers.", "tandem.roles", "webrtc")
_role("chat", "Run the bridge for Moshi's own clients (docs/chat.md).", "tandem.roles", "chat")
_role("web", "Run the web role.", "tandem.roles", "web")
_role("persist", "Carry events from Redis to Postgres.", "tandem.roles", "persister")


@sip.callback(invoke_without_command=True)
def sip_bridge(context: typer.Context) -> None:
    """Run the SIP bridge; or `edge`, what stands before it."""
    if context.invoked_subcommand is None:
        settings = _start("sip")
        importlib.import_module("tandem.roles").sip(settings)


@sip.command("edge")
def sip_edge(
    run: Annotated[bool, typer.Option("--run", help="start Kamailio and rtpengine with it, and keep them up")] = False,
    write: Annotated[Path | None, typer.Option(help="a folder for all its files, for a Kamailio that others "
                                               "start")] = None,
) -> None:
    """Kamailio's configuration, from the settings; with --run the edge itself."""
    from tandem import edge_command

    settings = _start("edge")
    if run:
        edge_command.run(settings)
    elif write is not None:
        edge_command.write(settings, write)
    else:
        edge_command.show(settings)


@sip.command("banned")
def sip_banned(
    lift: Annotated[str, typer.Option(help="an address that is let in again")] = "",
) -> None:
    """Which addresses the edge on this machine has banned, why and since when."""
    from tandem import edge_command

    settings = _start("edge")
    if lift:
        edge_command.lift(settings, lift)
    else:
        edge_command.show_banned(settings)


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database's tables to this version."""
    from calls.store import upgrade
    from tandem.roles import database_url

    upgrade(database_url(_start("db")))


@app.command()
def drain(
    worker: Annotated[str | None, typer.Argument(help="its name, or how it begins; default: lists all")] = None,
    off: Annotated[bool, typer.Option("--off", help="have it take calls again")] = False,
    wait: Annotated[float, typer.Option(min=0, max=3600, help="seconds until it must have no call any more")] = 60.0,
) -> None:
    """Have a worker take no new calls and move those it has to others; list the workers."""
    from tandem.drain_command import drain

    drain(load_settings(), worker, off=off, wait_s=wait)


@app.command()
def doctor(
    call_id: Annotated[str | None, typer.Argument(help="a call's id: what became of it, what went wrong")] = None,
) -> None:
    """Look at everything that a Tandem needs, with a call to the echo and back; say what is wrong and what to do."""
    from tandem.doctor import examine, examine_call

    log.configure("doctor", "error")
    settings = load_settings()
    if call_id is not None:
        examine_call(settings, call_id)
    elif not examine(settings):
        raise typer.Exit(1)


@model.command("verify")
def model_verify(
    directory: Annotated[Path, typer.Argument(help="a checkpoint folder with golden cases")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    weights: Weights = "auto",
    kv: KeysValues = "auto",
) -> None:
    """Replay golden cases through the engine's stages: a line each, exit code 1 if one differs."""
    from agent.models import eight_bits
    from tandem.model_commands import verify_directory

    log.configure("model", "warning")
    if not verify_directory(directory, device, dtype, eight_bits(weights), eight_bits(kv)):
        raise typer.Exit(1)


@model.command("info")
def model_info(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="`nano`, `moshiko`, another preset, a folder, a "
                                        "repository")],
    weights: Weights = "auto",
    kv: KeysValues = "auto",
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="what is not in 8 bits")] = "bfloat16",
    memory: Annotated[float | None, typer.Option(min=0.1, help="GB of a card; default: some known cards")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.1, help="GB/s of its memory")] = None,
) -> None:
    """How large a model is, and how many calls it carries where: from its configs alone, no weight is loaded."""
    from tandem.model_files_command import tell_info

    log.configure("model", "warning")
    tell_info(load_settings(weights=weights, kv=kv, dtype=dtype), name, memory, bandwidth)


@model.command("fetch")
def model_fetch(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="`moshiko`, another preset, a repository, with "
                                        "@revision")],
) -> None:
    """Fetch a model's files into Hugging Face's cache; a download that was cut short goes on where it stood."""
    from tandem.model_files_command import fetch

    log.configure("model", "error")
    fetch(name)


@model.command("run")
def model_run(
    play: Annotated[Path, typer.Argument(metavar="IN.wav", help="what the caller says, any audio file")],
    record: Annotated[Path, typer.Argument(metavar="OUT.wav", help="what the agent says, 24 kHz mono")],
    name: Annotated[str | None, typer.Option("--model", help="`nano`, `moshiko`, a folder, a repository; "
                                             "default: the default agent's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="the same seed draws the same conversation")] = 0,
    tail: Annotated[float, typer.Option(min=0, max=600, help="seconds of silence after the recording")] = 2.0,
) -> None:
    """A conversation with a recording, offline: words with times, and the real-time factor."""
    from tandem.model_commands import run_offline

    log.configure("model", "warning")
    run_offline(load_settings(**({"model": name} if name else {}), device=device), play, record, seed, tail)


@model.command("say")
def model_say(
    text: Annotated[str, typer.Argument(help='what to say; <break time="0.5s"/> is a pause')],
    record: Annotated[Path, typer.Argument(metavar="OUT.wav", help="24 kHz mono")],
    name: Annotated[str, typer.Option("--model", help="a text-to-speech model: a folder or a repository")],
    voice: Annotated[Path | None, typer.Option(help="file of a voice (.safetensors), for models that take one")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="the same seed says it the same way")] = 0,
) -> None:
    """Say a sentence by a text-to-speech model (docs/speech.md)."""
    from tandem.say_command import say

    log.configure("model", "warning")
    say(load_settings(model=name, device=device), text, record, voice, seed)


@model.command("transcribe")
def model_transcribe(
    files: Annotated[list[Path], typer.Argument(help="what is said, audio files")],
    kind: Annotated[Literal["text", "json", "srt", "vtt"], typer.Option("--format")] = "text",
    out: Annotated[Path | None, typer.Option(help="folder for a file each; default: all is printed")] = None,
    name: Annotated[str | None, typer.Option("--model", help="speech-to-text model; default: as the settings say")]
        = None,
    slots: Annotated[int, typer.Option(min=1, max=512, help="files at once")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """What is said in recordings, word by word with its times."""
    from tandem.transcribe_command import transcribe_files

    log.configure("model", "warning")
    transcribe_files(load_settings(**({"stt": name} if name else {}), device=device), files, kind, out, slots)


@app.command()
def phone(
    uri: Annotated[str, typer.Argument(help="whom to call, such as sip:agent@127.0.0.1; or a web role, such as "
                                       "http://127.0.0.1:8080, as its page would")],
    play: Annotated[Path | None, typer.Option(help="what to say, any audio file")] = None,
    record: Annotated[Path | None, typer.Option(help="where to keep what comes back, WAV 24 kHz")] = None,
    codec: Annotated[str | None, typer.Option(help="pcmu, pcma or g722; default: as the other side likes")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, max=3600, help="length of the call; default: "
                                                  "the file's and two seconds more")] = None,
    agent: Annotated[str, typer.Option(help="at a web role: whom to call, agent or echo")] = "agent",
) -> None:
    """A test phone: call, play a file, record the answer, measure the way."""
    from tandem.phone_command import phone_once

    log.configure("phone", "error")
    phone_once(uri, play, record, codec, seconds, agent)

@bench.command("calls")
def calls(
    sip: Annotated[int, typer.Option(min=0, max=64, help="phones at once")] = 4,
    webrtc: Annotated[int, typer.Option(min=0, max=64, help="calls from browsers beside them")] = 0,
    minutes: Annotated[float, typer.Option(min=0.1, max=60, help="that each call lasts")] = 1.0,
    user: Annotated[str, typer.Option(help="whom they call: agent or echo")] = "agent",
    uri: Annotated[str | None, typer.Option(help="phone a Tandem that runs: sip:agent@127.0.0.1; the settings name its "
                                            "Redis and web role; default: one of its own on free ports")] = None,
    plot: Annotated[Path | None, typer.Option(help="where a picture goes, a .png or .svg")] = None,
) -> None:
    """Many phones at once with real speech: frames lost, where the time goes, what each process costs."""
    from tandem.bench_calls_command import Order, bench_calls

    log.configure("bench", "warning")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UserError(f"{plot}: give a .png or an .svg")
    if user not in ("agent", "echo"):
        raise UserError(f"--user {user}: give agent or echo")
    if not sip + webrtc:
        raise UserError("--sip and --webrtc: nobody calls")
    bench_calls(load_settings(), Order(sip, webrtc, 60 * minutes, user, uri, plot))


@bench.command("conversation")
def conversation(
    rows: Annotated[str, typer.Option(help="which, with commas between them; default: all")] = "",
    count: Annotated[int, typer.Option(min=1, max=100_000, help="trials a row")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="the same seed makes the same callers, and offline the same "
                                      "answers")] = 0,
    name: Annotated[str | None, typer.Option("--model", help="`nano`, `moshiko`, a folder, a repository; "
                                             "default: the default agent's")] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=512, help="calls at once; default: as the settings say")]
        = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
    band: Annotated[str, typer.Option(help="offline, the callers' line: clean, wide_band or phone (G.711)")] = "phone",
    sip: Annotated[bool, typer.Option("--sip", help="phone a `tandem serve` of its own, in real time, G.711")] = False,
    uri: Annotated[str | None, typer.Option(help="phone a Tandem that runs: sip:agent@127.0.0.1; the settings name "
                                            "its Redis")] = None,
    held: Annotated[float, typer.Option(min=0.5, max=60, help="seconds for which answers are held back")] = 8.0,
    silence: Annotated[float, typer.Option(min=5, max=120, help="seconds of a long silence")] = 60.0,
    text_only: Annotated[bool, typer.Option("--text-only", help="don't judge the sound by the recogniser")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where to keep all figures and dialogues")] = None,
) -> None:
    """Scripted callers talk with a model: are answers right, in new voices and words, when interrupted, when held?"""
    from tandem.bench_commands import Order, bench_conversation

    log.configure("bench", "warning")
    given = {key: value for key, value in (("model", name), ("slots", slots), ("device", device)) if value is not None}
    keys = tuple(key.strip() for key in rows.split(",") if key.strip())
    order = Order(keys, count, seed, band, held, silence, sip, uri, text_only)
    bench_conversation(load_settings(**given), order, json_file)


def main() -> None:
    """Run a command; whatever the user can mend ends in one line on stderr and exit code 1."""
    try:
        app()
    except (UserError, SettingsError) as error:
        sys.exit(f"tandem: {error}")
