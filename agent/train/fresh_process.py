"""A program that speaks each utterance in a newly forked process: `python -m agent.train.fresh_process`.

The synthesisers' libraries remember what they spoke before. A fork of a process that has never used them begins
with the same memory each time, so an utterance depends on its text, voice and manner alone, and a crash costs only it.

stdin: one JSON object a line (family, voice, text, rate, semitones, melody).
stdout: for each one u32 size and JSON (rate, words, phones, or error), then u32 size and s16le sound, little endian.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import traceback
from contextlib import suppress

from agent.train import espeak, flite, pico
from agent.train.sounded import Sounded, SpeechError
from agent.train.voices import Manner

LONGEST_S = 20  # of synthesis; a fork that takes longer is stuck and ends
_LIBRARIES = {"espeak": espeak.sound, "flite": flite.sound, "pico": pico.sound}


def reply(sounded: Sounded | None, error: str = "") -> bytes:
    if sounded is None:
        head, pcm = json.dumps({"error": error}).encode(), b""
    else:
        fields = {"rate": sounded.rate, "words": sounded.words, "phones": sounded.phones}
        head, pcm = json.dumps(fields).encode(), sounded.pcm
    return struct.pack("<I", len(head)) + head + struct.pack("<I", len(pcm)) + pcm


def parse(head: bytes, pcm: bytes) -> Sounded:
    """The two parts of a reply; raises SpeechError with what went wrong over there."""
    fields = json.loads(head)
    if "error" in fields:
        raise SpeechError(fields["error"])
    return Sounded(fields["rate"], pcm, tuple(map(tuple, fields["words"])), tuple(map(tuple, fields["phones"])))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it, by closing its input
    with suppress(SpeechError):  # what is missing is said to whoever asks for it
        espeak.load()
    for request in sys.stdin.buffer:
        child = os.fork()
        if not child:
            status = 1
            try:
                _answer(request)
                status = 0
            except Exception:  # noqa: BLE001 - the edge of the child, which tells it and ends
                traceback.print_exc()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        if ended:
            status = os.waitstatus_to_exitcode(ended)
            said = request.decode("utf-8", "replace").strip()
            _write(reply(None, f"the synthesiser ended with status {status} at {said}"))


def _answer(request: bytes) -> None:
    signal.alarm(LONGEST_S)
    fields = json.loads(request)
    manner = Manner(fields["rate"], fields["semitones"], fields["melody"])
    try:
        answer = reply(_LIBRARIES[fields["family"]](fields["text"], fields["voice"], manner))
    except SpeechError as error:
        answer = reply(None, str(error))
    signal.alarm(0)
    _write(answer)


def _write(answer: bytes) -> None:
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
