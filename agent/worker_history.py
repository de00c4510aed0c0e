"""What a call that moves to a worker brings along, checked as it comes: its steps, the caller's last sound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from websockets.asyncio.server import ServerConnection

from agent.moshi.text import Tokenizer, WordTimer
from agent.moshi.transcribe import CallerWords
from agent.sound import from_s16le
from agent.step import ModelInfo, Past
from calls import wire

KEPT_WINDOWS = 2  # of a moved call's steps: one that the model sees, one that what it saw then was made with
FIRST_K = 4  # below which the first of all its steps is: fewer frames are lost before it
WORD_FRAMES = 50  # in which a word that goes on began
MOST_HEARD = 512  # frames of the caller's that come with it


async def past_of(
    connection: ServerConnection, layout: wire.StepLayout, info: ModelInfo,
) -> tuple[Past, tuple[int, ...], int]:
    """The history that a bridge sends first, and the caller's frames that follow it; the k of its steps, and the last
    one of both. Raises WireError, and ConnectionClosed."""
    history = wire.decode_from_bridge(binary(await connection.recv()), layout)
    if not isinstance(history, wire.History):
        raise wire.WireError("a call that resumes begins with its history")
    count = history.control_state.get("heard")
    if type(count) is not int or not 0 <= count <= MOST_HEARD:
        raise wire.WireError(f"history: heard must be a count up to {MOST_HEARD}")
    last_step_k = history.steps[-1].k if history.steps else -1
    last_k, heard, missed = last_step_k, list[bytes](), list[bytes]()
    for _ in range(count):
        message = wire.decode_from_bridge(binary(await connection.recv()), layout)
        if not isinstance(message, wire.Audio) or len(message.pcm) != 2 * info.frame_samples:
            raise wire.WireError("after a history come the caller's frames")
        (heard if message.k <= last_step_k else missed).append(message.pcm)
        last_k = max(last_k, message.k)

    def sound(frames: list[bytes]) -> npt.NDArray[np.float32]:
        return from_s16le(b"".join(frames)).reshape(-1, info.frame_samples)

    def codes(rows: list[tuple[int | None, ...]], codebooks: int) -> npt.NDArray[np.int64]:
        known = [[-1 if code is None else code for code in row] for row in rows]
        return np.array(known, np.int64).reshape(len(rows), codebooks).T

    steps = history.steps[-KEPT_WINDOWS * info.context:]
    past = Past(
        text=np.array([step.text for step in steps], np.int64),
        agent_codes=codes([step.agent_codes for step in steps], info.generated_codebooks),
        caller_codes=codes([step.caller_codes for step in steps], info.caller_codebooks),
        caller_text=np.array([step.caller_text for step in steps], np.int64),
        heard=sound(heard), missed=sound(missed),
        whole=not steps or steps[0].k < FIRST_K or history.control_state.get("anew") is True)
    return past, tuple(step.k for step in steps), last_k


def remember_words(tokenizer: Tokenizer, past: Past, ks: tuple[int, ...], words: WordTimer,
                   caller: CallerWords | None) -> None:
    """Words that go on after these steps began within them; those that ended within them have been told."""
    latest = zip(ks[-WORD_FRAMES:], past.text[-WORD_FRAMES:], past.caller_text[-WORD_FRAMES:], strict=True)
    for k, token, said in latest:
        words.feed(k, tokenizer.piece(int(token)))
        if caller is not None and said >= 0:
            caller.feed(k, int(said))


def check_given(step: wire.Step, pcm: bytes, last_k: int, info: ModelInfo) -> None:
    """Raises WireError for a step that no engine of this model can have made: it must not fail by it."""
    known = [code for code in step.agent_codes if code is not None]
    if step.k <= last_k or len(pcm) != 2 * info.frame_samples:
        raise wire.WireError(f"a step {step.k} with {len(pcm)} bytes of sound after frame {last_k}")
    if not 0 <= step.text < info.text_tokens or any(code >= info.codebook_size for code in known):
        raise wire.WireError(f"step {step.k} has tokens that this model doesn't have")


def binary(data: str | bytes) -> bytes:
    """Raises WireError."""
    if isinstance(data, str):
        raise wire.WireError("messages are binary")
    return data
