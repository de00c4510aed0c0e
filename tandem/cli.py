"""The `tandem` command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from calls.settings import Settings, SettingsError, load_settings
from tandem import log
from tandem.errors import UserError

app = typer.Typer(
    help="Full-duplex voice agents on the phone and the web, with Moshi.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
model = typer.Typer(help="Try and check models.", no_args_is_help=True, rich_markup_mode=None)
call = typer.Typer(help="What was said in calls.", no_args_is_help=True, rich_markup_mode=None)
train = typer.Typer(help="Teach a small Moshi.", no_args_is_help=True, rich_markup_mode=None)
db = typer.Typer(help="The database.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(model, name="model")
app.add_typer(call, name="call")
app.add_typer(train, name="train")
app.add_typer(db, name="db")


def _start(role: str) -> Settings:
    settings = load_settings()
    log.configure(role, settings.log_level)
    return settings


def _role(name: str, help_text: str, module: str, function: str) -> None:
    """A command that runs one role; what it imports is heavy, so it waits until it is asked for."""

    def command() -> None:
        settings = _start(name)
        getattr(importlib.import_module(module), function)(settings)

    app.command(name, help=help_text)(command)


_role("serve", "Run everything on this machine.", "tandem.serve", "serve")
_role("worker", "Run a worker: the model, for many calls together.", "tandem.roles", "worker")
_role("sip", "Run the SIP bridge.", "tandem.roles", "sip")
_role("web", "Run the web role.", "tandem.roles", "web")
_role("persist", "Carry events from Redis to Postgres.", "tandem.roles", "persister")


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database's tables to this version."""
    from calls.store import upgrade
    from tandem.roles import database_url

    upgrade(database_url(_start("db")))


@model.command("verify")
def model_verify(
    directory: Annotated[Path, typer.Argument(help="a checkpoint folder with golden cases")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
) -> None:
    """Replay golden cases through the engine's stages: a line each, exit code 1 if one differs."""
    from tandem.model_commands import verify_directory

    log.configure("model", "warning")
    if not verify_directory(directory, device, dtype):
        raise typer.Exit(1)


@model.command("run")
def model_run(
    play: Annotated[Path, typer.Argument(metavar="IN.wav", help="what the caller says, any audio file")],
    record: Annotated[Path, typer.Argument(metavar="OUT.wav", help="what the agent says, 24 kHz mono")],
    name: Annotated[str | None, typer.Option("--model", help="`random`, `moshiko`, a folder, a repository; "
                                             "default: the default agent's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="the same seed draws the same conversation")] = 0,
    tail: Annotated[float, typer.Option(min=0, max=600, help="seconds of silence after the recording")] = 2.0,
) -> None:
    """A conversation with a recording, offline: words with times, and the real-time factor."""
    from tandem.model_commands import run_offline

    log.configure("model", "warning")
    run_offline(load_settings(**({"model": name} if name else {}), device=device), play, record, seed, tail)


@app.command()
def phone(
    uri: Annotated[str, typer.Argument(help="whom to call, such as sip:agent@127.0.0.1")],
    play: Annotated[Path | None, typer.Option(help="what to say, any audio file")] = None,
    record: Annotated[Path | None, typer.Option(help="where to keep what comes back, WAV 24 kHz")] = None,
    codec: Annotated[str | None, typer.Option(help="pcmu, pcma or g722; default: as the other side likes")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, max=3600, help="length of the call; default: "
                                                  "the file's and two seconds more")] = None,
) -> None:
    """A test phone: call, play a file, record the answer, measure the way."""
    from tandem.phone_command import phone_once

    log.configure("phone", "error")
    phone_once(uri, play, record, codec, seconds)


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


@train.command("data")
def train_data(
    folder: Annotated[Path, typer.Argument(help="where the calls go; what is there already is kept")],
    calls: Annotated[int, typer.Option(min=1, max=100_000, help="how many")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="the same seed makes the same calls")] = 0,
    split: Annotated[str, typer.Option(help="training, or held-out voices or family with held-out phrasings")]
        = "training",
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="processes; default: one a core")] = None,
) -> None:
    """Make calls of the restaurant's reception in the public fine-tuning format: stereo WAV, JSONL, word times."""
    from tandem.train_commands import make_data

    make_data(folder, calls, seed, split, workers)


def main() -> None:
    """Run a command; whatever the user can mend ends in one line on stderr and exit code 1."""
    try:
        app()
    except (UserError, SettingsError) as error:
        sys.exit(f"tandem: {error}")
