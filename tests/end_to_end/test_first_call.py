"""A phone talks with Tandem as `make serve` runs it: what comes back, what is kept, what busy means."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
from call_peers import baresip, speech
from served import Served

from agent.moshi.checkpoint import load_model
from agent.moshi.text import TimedWord, Tokenizer, WordTimer
from calls.events import HOPS
from calls.priority import SESSION, STEP
from calls.store import CallRow, RecordingRow, Store
from media.audio import CHUNK, FRAME_S, SAMPLE_RATE, Samples, from_pcm16, read_audio
from media.telephone import PhoneLine, over_phone
from media.token_log import read_token_log, token_log_path
from sip.phone import PhoneError, measure_return, phone
from tandem.embedded import running_postgres

TALK_S = 30


@pytest.fixture(scope="session")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("speech") / "hello.wav", "Hello, who is there? I would like a table.", 3.5)


async def _ended(served: Served, matches: Callable[[CallRow], bool]) -> CallRow:
    """The newest call's row that matches, once it has an end."""
    store = Store(running_postgres(served.folder / "data"))
    try:
        async with asyncio.timeout(15):
            while True:
                for row in await store.calls(20):
                    if row.end_reason is not None and matches(row):
                        return row
                await asyncio.sleep(0.1)
    finally:
        await store.close()


async def _until_idle(served: Served) -> None:
    """Returns when no slot is taken any more."""
    async with asyncio.timeout(15):
        while any(model["used"] for model in served.health()["models"].values()):  # type: ignore[attr-defined]
            await asyncio.sleep(0.1)


def _low_pass(samples: Samples, hertz: float) -> Samples:
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > hertz] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _share_above(samples: Samples, hertz: float) -> float:
    """How much of the energy lies above a frequency."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(power[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > hertz].sum() / power.sum())


@pytest.mark.parametrize(("codec", "wide"), [("pcmu", False), ("g722", True)])
def test_the_echo_brings_the_sound_back_and_the_phone_prints_its_delay(
    served: Served, hello: Path, tmp_path: Path, codec: str, wide: bool,
) -> None:
    back = tmp_path / "back.wav"
    run = served.tandem("phone", served.uri("echo"), "--play", str(hello), "--record", str(back), "--codec", codec)
    assert run.returncode == 0, run.stderr
    said = re.search(r"came back after (\d+) ms, correlation ([\d.]+)", run.stdout)
    assert said, run.stdout
    assert 80 <= int(said[1]) < 1000
    assert float(said[2]) > 0.9
    heard = read_audio(back)
    assert measure_return(read_audio(hello), heard)[1] == pytest.approx(float(said[2]), abs=0.001)
    assert (_share_above(heard, 4200) > 0.25 * _share_above(read_audio(hello), 4200)) is wide


async def test_an_ordinary_phone_talks_with_the_agent_for_half_a_minute(served: Served, tmp_path: Path) -> None:
    play = speech(tmp_path / "talk.wav", "Hello. " + "I would like to book a table for four people. " * 8, TALK_S + 15)
    _, received = await baresip(served.uri("agent"), play, tmp_path / "baresip", TALK_S)
    row = await _ended(served, lambda row: "ann@" in (row.caller or ""))
    await _until_idle(served)

    assert (row.model, row.codec, row.end_reason, row.sip_status) == ("random", "PCMU", "caller_hung_up", 200)
    assert row.answered_at is not None
    assert row.ended_at is not None
    talked_s = (row.ended_at - row.answered_at).total_seconds()
    assert talked_s > TALK_S - 3
    assert row.frames == pytest.approx(talked_s / FRAME_S, abs=3)
    assert (row.frames_dropped, row.frames_missing, row.underruns) == (0, 0, 0)
    assert len(received) / SAMPLE_RATE == pytest.approx(talked_s, abs=0.3)  # RTP all the time

    decoded, words, tokens_from_s = _what_the_worker_did(served, row.id)
    delay_ms, correlation = measure_return(_low_pass(decoded, 3400), _low_pass(received, 3400))
    assert correlation is not None
    assert delay_ms is not None
    assert correlation > 0.9, "what was heard isn't what the worker decoded"

    store = Store(running_postgres(served.folder / "data"))
    utterances = await store.utterances(row.id)
    found = await store.search(utterances[0].words[0].text)
    await store.close()
    kept = [word for utterance in utterances for word in utterance.words]
    assert len(words) >= 10
    assert 0 <= len(kept) - len(words) <= 2  # words that the hang-up cut short
    for word, timed in zip(kept, words, strict=False):
        assert (word.text, word.first_k, word.last_k) == (timed.text, timed.first_k, timed.last_k)
        heard_s = (timed.first_k + 1.5) * FRAME_S - tokens_from_s + delay_ms / 1000  # Moshi's delay is one frame
        assert word.start_s == pytest.approx(heard_s, abs=0.08)
    assert row.id in {match.call for match in found}

    # the recording: what baresip got on the left, what it sent on the right, words at their sound
    recording = await _recording(served, row.id)
    assert (recording.codec, recording.lost_s, recording.paused_s) == ("flac", 0, 0)
    heard, said = _sides(recording)
    assert len(heard) == CHUNK * round(len(heard) / CHUNK)
    assert recording.seconds == len(heard) / SAMPLE_RATE == pytest.approx(talked_s, abs=0.3)
    later = np.zeros(SAMPLE_RATE // 2, np.float32)  # either of two recordings may begin before the other
    _, correlation = measure_return(_low_pass(heard, 3400), np.concatenate([later, _low_pass(received, 3400)]))
    assert correlation is not None
    assert correlation > 0.98
    _, correlation = measure_return(_phone_band(read_audio(play)), np.concatenate([later, said]))
    assert correlation is not None
    assert correlation > 0.93  # 0.967 where nothing else runs; a packet that comes late is concealed, and recorded so
    assert f"recording {recording.url}  " in served.tandem("call", "show", row.id).stdout

    # the token log says the same again
    again = tmp_path / "again.wav"
    replayed = served.tandem("call", "replay", row.id, str(again))
    assert replayed.returncode == 0, replayed.stderr
    _, correlation = measure_return(read_audio(again), np.concatenate([later, heard]))
    assert correlation is not None
    assert correlation > 0.98
    assert [line.split()[-1] for line in replayed.stdout.splitlines()][:len(words)] == [word.text for word in words]
    held = served.tandem("call", "replay", row.id, str(again), "--what-if", "10", "--hold")
    assert held.returncode == 0, held.stderr
    assert max(float(line.split()[0]) for line in held.stdout.splitlines()) < 10 + 4 * FRAME_S
    assert "*" not in held.stdout


async def _recording(served: Served, call: str) -> RecordingRow:
    store = Store(running_postgres(served.folder / "data"))
    try:
        async with asyncio.timeout(20):
            while (row := await store.recording(call)) is None:
                await asyncio.sleep(0.1)
            return row
    finally:
        await store.close()


def _sides(recording: RecordingRow) -> tuple[Samples, Samples]:
    """What was heard and what was said."""
    with av.open(recording.url) as file:
        [stream] = file.streams.audio
        assert (stream.rate, stream.layout.name) == (SAMPLE_RATE, "stereo")
        samples = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in file.decode(stream)])
    heard, said = (from_pcm16(np.ascontiguousarray(side).tobytes()) for side in samples.T)
    return heard, said


def _phone_band(samples: Samples) -> Samples:
    return over_phone(samples, PhoneLine(), np.random.default_rng(0))


def _what_the_worker_did(served: Served, call: str) -> tuple[Samples, list[TimedWord], float]:
    """From the token log, which ends with what was heard: the agent's sound, the words that were over by then, and
    when in the call's frames the log begins."""
    torch.set_num_threads(1)
    model = load_model(served.folder / "data" / "models" / "random")
    header, steps = read_token_log(token_log_path(served.folder / "data", call))
    assert model.tokenizer_path is not None
    tokenizer, timer = Tokenizer(model.tokenizer_path), WordTimer()
    taken = list(steps)
    assert [step.k for step in taken] == list(range(header.first_k, header.first_k + len(taken)))
    words = [timer.feed(step.k, tokenizer.piece(step.text)) for step in taken]
    delays = model.lm.config.delays[1:1 + header.generated_codebooks]
    last = len(taken) - max(delays)
    codes = np.array([[taken[k + delay].agent_codes[book] for k in range(last)] for book, delay in enumerate(delays)])
    with torch.inference_mode():
        decoded = model.mimi.decode(torch.from_numpy(codes.astype(np.int64))[None])[0].numpy()
    # frame k of the codes is heard as the agent's frame k + largest delay
    return decoded, [word for word in words if word], (header.first_k + max(delays)) * FRAME_S


async def test_four_calls_share_one_sip_process_and_a_fifth_is_turned_away_with_a_row(served: Served) -> None:
    calls = [asyncio.create_task(phone(served.uri("agent"), seconds=6)) for _ in range(4)]
    async with asyncio.timeout(10):
        while served.health()["models"]["random"]["used"] < 4:  # type: ignore[index]
            await asyncio.sleep(0.1)
    with pytest.raises(PhoneError) as refused:
        await phone(served.uri("one-too-many"), seconds=1)
    reports = await asyncio.gather(*calls)
    assert [(report.status, report.hung_up_by, report.packets_lost) for report in reports] == [(200, "us", 0)] * 4
    assert all(report.packets_received >= 0.95 * 50 * 6 for report in reports)
    assert refused.value.status == 486
    row = await _ended(served, lambda row: "one-too-many@" in (row.callee or ""))
    assert (row.end_reason, row.sip_status, row.ended_by) == ("busy", 486, "local")
    await _until_idle(served)


async def test_the_third_caller_of_two_slots_is_told_when_to_try_again_and_has_a_row(served: Served) -> None:
    calls = [asyncio.create_task(phone(served.uri("echo"), seconds=6)) for _ in range(2)]
    async with asyncio.timeout(10):
        while served.health()["models"]["echo"]["used"] < 2:  # type: ignore[index]
            await asyncio.sleep(0.1)
    with pytest.raises(PhoneError) as refused:
        await phone(served.uri("echo"), seconds=1)
    await asyncio.gather(*calls)
    assert (refused.value.status, refused.value.retry_after_s) == (486, 10)
    row = await _ended(served, lambda row: row.end_reason == "busy" and "echo@" in (row.callee or ""))
    assert (row.sip_status, row.answered_at, row.model) == (486, None, None)
    assert row.end_detail
    await _until_idle(served)


async def test_while_the_worker_is_away_callers_get_503_and_then_it_serves_again(served: Served) -> None:
    [worker] = [child for child in psutil.Process(served.process.pid).children() if "worker" in child.cmdline()]
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(PhoneError) as refused:
        await phone(served.uri("nobody-there"), seconds=1)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 10)
    row = await _ended(served, lambda row: "nobody-there@" in (row.callee or ""))
    assert (row.end_reason, row.sip_status) == ("no_worker", 503)
    async with asyncio.timeout(60):
        while served.log.count("worker ready") < 2:
            await asyncio.sleep(0.1)
        while served.health()["status"] != "ok":
            await asyncio.sleep(0.1)
    report = await phone(served.uri("echo"), seconds=1)
    assert report.status == 200


async def test_a_slot_is_free_again_when_its_bridge_dies_and_the_next_call_is_served(served: Served) -> None:
    [role] = [child for child in psutil.Process(served.process.pid).children() if "sip" in child.cmdline()]
    [bridge] = [child for child in role.children() if any("spawn_main" in part for part in child.cmdline())]
    cut = asyncio.create_task(phone(served.uri("echo"), seconds=4))
    async with asyncio.timeout(10):
        while served.health()["models"]["echo"]["used"] < 1:  # type: ignore[index]
            await asyncio.sleep(0.1)
    bridge.kill()
    await _until_idle(served)
    await asyncio.wait([cut])
    cut.exception()
    calls = [asyncio.create_task(phone(served.uri("echo"), seconds=1)) for _ in range(2)]  # as many as it has slots
    assert [report.status for report in await asyncio.gather(*calls)] == [200, 200]


async def test_the_recording_of_a_bridge_that_dies_is_kept_by_the_persister(served: Served) -> None:
    [role] = [child for child in psutil.Process(served.process.pid).children() if "sip" in child.cmdline()]
    [bridge] = [child for child in role.children() if any("spawn_main" in part for part in child.cmdline())]
    cut = asyncio.create_task(phone(served.uri("recorded-echo"), seconds=6))
    folder = served.folder / "data" / "calls"
    async with asyncio.timeout(15):
        while not (raw := [path for path in folder.glob("*.raw") if path.stat().st_size > 3 * SAMPLE_RATE * 4]):
            await asyncio.sleep(0.1)
    bridge.kill()
    recording = await _recording(served, raw[0].stem)
    assert 3 <= recording.seconds < 8
    assert len(_sides(recording)[0]) == recording.seconds * SAMPLE_RATE
    assert not raw[0].exists()
    await asyncio.wait([cut])
    cut.exception()
    report = await phone(served.uri("echo"), seconds=1)  # the next process is there
    assert report.status == 200


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="cores aren't shared among sessions")
def test_what_must_be_in_time_goes_before_other_programs(served: Served) -> None:
    roles = {child.cmdline()[-1]: child.pid for child in psutil.Process(served.process.pid).children()}
    sessions = {role: int(Path(f"/proc/{roles[role]}/autogroup").read_text().split("nice ")[1])
                for role in ("worker", "sip", "web")}
    allowed = os.getpriority(os.PRIO_PROCESS, roles["worker"]) == STEP
    assert sessions == ({"worker": SESSION, "sip": SESSION, "web": 0} if allowed else dict.fromkeys(sessions, 0))


async def test_calls_can_be_listed_and_shown(served: Served) -> None:
    await phone(served.uri("to-be-listed"), seconds=8)
    row = await _ended(served, lambda row: "to-be-listed@" in (row.callee or ""))
    listed = served.tandem("call", "list")
    assert listed.returncode == 0, listed.stderr
    [line] = [line for line in listed.stdout.splitlines() if line.startswith(row.id)]
    for told in (f"sip:to-be-listed@127.0.0.1:{served.sip_port}", "random", "caller_hung_up 200"):
        assert told in line
    shown = served.tandem("call", "show", row.id)
    assert shown.returncode == 0, shown.stderr
    store = Store(running_postgres(served.folder / "data"))
    spoken = await store.utterances(row.id)
    await store.close()
    assert spoken
    frames = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)(?:  +[\d.]+){3}$", shown.stdout, re.M)}
    assert set(HOPS) <= set(frames), shown.stdout
    assert frames["whole"] == pytest.approx(8 / FRAME_S, abs=12)
    for utterance in spoken:
        assert f"{utterance.start_s:8.2f} {utterance.end_s:8.2f}  agent: {utterance.text}\n" in shown.stdout
    missing = served.tandem("call", "show", "nothing")
    assert (missing.returncode, missing.stderr) == (1, "tandem: there is no call nothing\n")


def test_a_second_tandem_on_the_same_folder_says_so_and_ends(served: Served) -> None:
    run = served.tandem("serve")
    assert run.returncode == 1
    assert "already uses this data folder" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_a_port_that_is_taken_ends_the_start_with_a_line_that_names_it(served: Served, tmp_path: Path) -> None:
    environment = served.environment | {"TANDEM_WEB_PORT": "0", "TANDEM_DATA_DIR": str(tmp_path / "data")}
    run = subprocess.run([sys.executable, "-m", "tandem", "serve"], cwd=tmp_path, env=environment, text=True,
                         capture_output=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("tandem: sip can't start")
    assert any(str(served.sip_port) in line for line in run.stderr.splitlines() if line.startswith("tandem: "))
    assert "Traceback" not in run.stderr
