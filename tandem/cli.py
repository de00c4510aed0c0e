"""The `tandem` command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calls.settings import Settings, SettingsError, load_settings
from tandem import log
from tandem.errors import UserError

app = typer.Typer(
    help="Full-duplex voice agents on the phone and the web, with Moshi.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
model = typer.Typer(help="Try and check models.", no_args_is_help=True, rich_markup_mode=None)
call = typer.Typer(help="What was said in calls, and an operator's hand on those that run.", no_args_is_help=True,
                   rich_markup_mode=None)
train = typer.Typer(help="Teach a small Moshi.", no_args_is_help=True, rich_markup_mode=None)
bench = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)
db = typer.Typer(help="The database.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(model, name="model")
app.add_typer(call, name="call")
key = typer.Typer(help="Keys with which programs use the API.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(key, name="key")
user = typer.Typer(help="Operators: who may use the dashboard.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(user, name="user")
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")
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
_role("webrtc", "Run the WebRTC bridge: calls from browsers.", "tandem.roles", "webrtc")
_role("web", "Run the web role.", "tandem.roles", "web")
_role("persist", "Carry events from Redis to Postgres.", "tandem.roles", "persister")


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database's tables to this version."""
    from calls.store import upgrade
    from tandem.roles import database_url

    upgrade(database_url(_start("db")))


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


_CallId = Annotated[str, typer.Argument(help="a call that runs: its id, from `tandem call list`")]


def _give(call_id: str, action: Any, **what: Any) -> None:
    from calls.controls import Control
    from tandem import control_command

    control_command.give(load_settings(), Control(call_id, action, by=control_command.whoever_this_is(), **what))


@call.command("speak")
def call_speak(call_id: _CallId) -> None:
    """Make the agent speak now: EPAD is forced. Ends a hold."""
    _give(call_id, "speak")


@call.command("hold")
def call_hold(
    call_id: _CallId,
    mute: Annotated[bool, typer.Option("--mute", help="cut its sound at once, also in the middle of a word")] = False,
) -> None:
    """Make the agent hold its tongue, and listen, until it is released: PAD is forced."""
    _give(call_id, "hold", mute=mute)


@call.command("say")
def call_say(call_id: _CallId, text: Annotated[str, typer.Argument(help="the sentence")]) -> None:
    """Make the agent say a sentence, word for word, in its own voice."""
    _give(call_id, "say", text=text)


@call.command("whisper")
def call_whisper(call_id: _CallId, text: Annotated[str, typer.Argument(help="the sentence")]) -> None:
    """Feed the agent a sentence as silent text, as if it had thought it (experimental)."""
    _give(call_id, "whisper", text=text)


@call.command("release")
def call_release(call_id: _CallId) -> None:
    """End a hold: the agent is free again."""
    _give(call_id, "release")


@call.command("set")
def call_set(
    call_id: _CallId,
    text_temperature: Annotated[float | None, typer.Option(min=0, max=10)] = None,
    audio_temperature: Annotated[float | None, typer.Option(min=0, max=10)] = None,
    pad_bias: Annotated[float | None, typer.Option(min=-100, max=100, help="above 0 it speaks less")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.1, max=10)] = None,
) -> None:
    """Change how the agent's tokens are drawn while it talks."""
    from calls.wire import SamplingSettings

    _give(call_id, "set", sampling=SamplingSettings(
        text_temperature=text_temperature, audio_temperature=audio_temperature, pad_bias=pad_bias,
        repetition_penalty=repetition_penalty))


@call.command("hangup")
def call_hang_up(call_id: _CallId) -> None:
    """End the call, when what the agent has said is heard."""
    _give(call_id, "hang_up")


@call.command("record")
def call_record(call_id: _CallId, what: Annotated[Literal["pause", "resume"], typer.Argument()]) -> None:
    """Pause the call's recording, or go on with it."""
    _give(call_id, f"{what}_recording")


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


@train.command("data")
def train_data(
    folder: Annotated[Path, typer.Argument(help="where the calls go; what is there already is kept")],
    calls: Annotated[int, typer.Option(min=1, max=100_000, help="how many")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="the same seed makes the same calls")] = 0,
    split: Annotated[str, typer.Option(help="training, or held-out voices or family with held-out phrasings")]
        = "training",
    callers: Annotated[bool, typer.Option("--callers-only", help="nobody answers: more to hear in a minute")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="processes; default: one a core")] = None,
) -> None:
    """Make calls of the restaurant's reception in the public fine-tuning format: stereo WAV, JSONL, word times."""
    from tandem.train_data_command import make_data

    make_data(folder, calls, seed, split, workers, callers_only=callers)


_Steps = Annotated[int, typer.Option(min=1, max=1_000_000)]
_Seed = Annotated[int, typer.Option(min=0)]
_Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
_Processes = Annotated[int | None, typer.Option(min=1, max=64, help="default: one a core, on a GPU one")]


@train.command("nano")
def train_nano(
    folder: Annotated[Path, typer.Argument(help="where all of it goes; what is there already is kept, gone on with")],
    of: Annotated[Path | None, typer.Option(help="a small model to go on from, as models/nano: its codec stays, the "
                                            "language models go on learning")] = None,
    stages: Annotated[str, typer.Option(help="some of data, codec, ears, tokens, stt, hearing, lm, with commas; "
                                      "default: all")] = "",
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Train the small Moshi of models/nano from nothing: calls, codec, language model, speech-to-text."""
    from tandem import train_nano_command

    wanted = tuple(stage.strip() for stage in stages.split(",") if stage.strip())
    train_nano_command.nano(folder, of, wanted, device, processes)


@train.command("mimi")
def train_mimi(
    folder: Annotated[Path, typer.Argument(help="where the codec goes; a training that is there goes on")],
    calls: Annotated[list[Path], typer.Option(help="list of calls to learn from, a .jsonl; may be given again")],
    held_out: Annotated[Path, typer.Option(help="list of calls to judge by")],
    config: Annotated[Path | None, typer.Option(help="a mimi_config.json; default: nano's")] = None,
    learns: Annotated[Literal["all", "ears"], typer.Option(
        help="ears: the encoder of --of goes on, with what callers say")] = "all",
    of: Annotated[Path | None, typer.Option(help="the folder of a trained codec")] = None,
    steps: _Steps = 5500,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="stretches of 2 s in a step")] = 4,
    seed: _Seed = 0,
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Teach a codec: Mimi, its first codebook by phonemes."""
    from tandem import train_nano_command

    train_nano_command.mimi(folder, calls, held_out, config, learns, of, steps=steps, batch=batch, seed=seed,
                            device=device, processes=processes)


@train.command("tokens")
def train_tokens(
    out: Annotated[Path, typer.Argument(help="the file to write, a .safetensors")],
    calls: Annotated[list[Path], typer.Argument(help="lists of calls, .jsonl")],
    agent: Annotated[Path, typer.Option(help="the checkpoint folder whose Mimi and tokenizer encode them")],
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="processes; default: one a core")] = None,
) -> None:
    """Encode calls as the language models read them."""
    from tandem import train_nano_command

    train_nano_command.tokens(out, calls, agent, workers)


@train.command("lm")
def train_lm(
    folder: Annotated[Path, typer.Argument(help="where the model goes; a training that is there goes on")],
    calls: Annotated[Path, typer.Option(help="encoded calls to learn from")],
    held_out: Annotated[Path, typer.Option(help="encoded calls to judge by")],
    config: Annotated[Path | None, typer.Option(help="a config.json; default: nano's")] = None,
    ears: Annotated[Path | None, typer.Option(help="folder of a hearing training to begin with")] = None,
    callers: Annotated[Path | None, typer.Option(help="encoded callers alone, to hear more of")] = None,
    steps: _Steps = 2900,
    frames: Annotated[int, typer.Option(min=300, max=1_000_000, help="in a step")] = 3072,
    seed: _Seed = 0,
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Teach a language model: both streams of sound and the inner monologue, on whole calls."""
    from tandem import train_nano_command

    train_nano_command.language_model(folder, calls, held_out, config, ears, callers, steps=steps, frames=frames,
                                      seed=seed, device=device, processes=processes)


@train.command("curves")
def train_curves(
    folder: Annotated[Path, typer.Argument(help="of a training")],
    out: Annotated[Path, typer.Argument(help="the picture, .png or .svg")],
) -> None:
    """Draw the curves of a training, whole or still running."""
    from tandem import train_nano_command

    train_nano_command.curves(folder, out)


@train.command("stt")
def train_stt(
    folder: Annotated[Path, typer.Argument(help="where the model goes; a training that is there goes on")],
    calls: Annotated[list[Path], typer.Option(help="encoded calls to learn from; may be given again")],
    held_out: Annotated[Path, typer.Option(help="encoded calls to judge by")],
    agent: Annotated[Path, typer.Option(help="the checkpoint folder whose Mimi and tokenizer encoded them")],
    steps: _Steps = 2400,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="windows of 20 s in a step")] = 8,
    dim: Annotated[int, typer.Option(min=16, max=4096, help="of the model: a multiple of 16")] = 256,
    delay: Annotated[float, typer.Option(min=0.08, max=5, help="seconds that words come late")] = 0.5,
    processes: _Processes = None,
    device: _Device = "cpu",
    seed: _Seed = 0,
) -> None:
    """Teach speech-to-text: the caller's words and pauses, on the codes that the agent hears."""
    from tandem import train_stt_command

    train_stt_command.train_stt(folder, calls, held_out, agent, steps=steps, batch=batch, dim=dim, delay_s=delay,
                                processes=processes, device=device, seed=seed)


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


@train.command("lora")
def train_lora(
    model: Annotated[str, typer.Argument(help="the checkpoint: `moshiko`, `moshika`, a folder, a repository")],
    calls: Annotated[Path, typer.Argument(help="list of stereo calls with word times, a .jsonl")],
    folder: Annotated[Path, typer.Argument(help="where the tuned model goes; a training that is there goes on")],
    held_out: Annotated[Path | None, typer.Option(help="list of calls to judge by; default: each tenth call")] = None,
    rank: Annotated[int, typer.Option(min=1, max=4096, help="of the adapters")] = 128,
    scaling: Annotated[float, typer.Option(min=0.01, max=100, help="of what the adapters add")] = 2.0,
    ft_embed: Annotated[bool, typer.Option("--ft-embed", help="train the embeddings too, as a whole")] = False,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1, help="at its highest")] = 2e-6,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000)] = 2000,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="windows in a step")] = 16,
    window: Annotated[float, typer.Option(min=1, max=600, help="seconds of a window")] = 100.0,
    at_once: Annotated[int, typer.Option(min=1, max=4096, help="windows kept in memory together; where that is "
                                         "the whole batch, a step takes a third less time")] = 1,
    copies: Annotated[int, typer.Option(min=1, max=100, help="of each call: itself, and its caller over other "
                                        "phone lines")] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, max=64, help="default: one a core, on a GPU one")] = None,
) -> None:
    """Fine-tune any checkpoint with low-rank adapters, from calls in the public fine-tuning format."""
    from tandem import train_lora_command

    train_lora_command.train_lora(
        model, calls, folder, held_out, rank=rank, scaling=scaling, ft_embed=ft_embed, learning_rate=learning_rate,
        steps=steps, batch=batch, window_s=window, at_once=at_once, copies=copies, seed=seed, device=device,
        processes=processes)


def main() -> None:
    """Run a command; whatever the user can mend ends in one line on stderr and exit code 1."""
    try:
        app()
    except (UserError, SettingsError) as error:
        sys.exit(f"tandem: {error}")
