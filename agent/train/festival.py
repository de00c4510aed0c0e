"""festival through its Scheme prompt: one process, which speaks the same text the same way each time."""

from __future__ import annotations

import select
import subprocess
import tempfile
import time
import wave
from pathlib import Path

from agent.train import phones
from agent.train.sounded import Sounded, SpeechError
from agent.train.voices import Manner

LONGEST_S = 60  # of one answer; the first one loads a voice and its dictionary
_END = "tandem-end"
# `Utterance` takes its arguments unevaluated, hence the `eval`; output into a pipe waits for `fflush`. Words go by
# token, "twenty-two" being one of the text's; punctuation is a word too, without a time.
_DEFINITIONS = f"""
(define (tandem_say text file)
  (set! utt (eval (list 'Utterance 'Text text)))
  (utt.synth utt)
  (utt.save.wave utt file 'riff)
  (set! at -1)
  (mapcar (lambda (token)
            (set! at (+ at 1))
            (mapcar (lambda (word)
                      (format t "W %d %f %f\\n" at (item.feat word "word_start") (item.feat word "word_end")))
                    (item.daughters token)))
          (utt.relation_tree_tops utt 'Token))
  (mapcar (lambda (segment) (format t "S %s %f\\n" (item.name segment) (item.feat segment "end")))
          (utt.relation.items utt 'Segment))
  (format t "{_END}\\n")
  (fflush))
(define (utt.relation_tree_tops utt name)
  (let ((item (utt.relation.first utt name)) (tops nil))
    (while item (set! tops (cons item tops)) (set! item (item.next item)))
    (reverse tops)))
"""


class Festival:
    """A running festival; use it as a context. Raises SpeechError where it isn't installed."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                ["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                bufsize=0,
            )
        except FileNotFoundError:
            raise SpeechError("festival is missing: install Debian's package festival") from None
        self._folder = tempfile.TemporaryDirectory(prefix="festival-")
        self._unread = b""
        self._send(_DEFINITIONS)

    def __enter__(self) -> Festival:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def sound(self, text: str, voice: str, manner: Manner) -> Sounded:
        """Speak `text`; only the rate of a manner counts here. Raises SpeechError, after which this festival is to be
        closed: what it still says would be taken for its next answer."""
        path = Path(self._folder.name) / "said.wav"
        stretch = 1 / manner.rate
        self._send(
            f"(voice_{voice}) (Parameter.set 'Duration_Stretch {stretch:.4f})"
            f"(if (boundp 'hts_engine_params)"
            f" (set! hts_engine_params (append hts_engine_params (list (list \"-r\" {manner.rate:.4f})))))"
            f"(tandem_say {_quoted(text)} {_quoted(str(path))})\n"
        )
        words, ends = _read(self._answer(text))
        with wave.open(str(path), "rb") as file:
            rate, pcm = file.getframerate(), file.readframes(file.getnframes())
        if words and words[-1][0] >= len(text.split()):
            raise SpeechError(f"festival reads more words in {text!r} than its {len(text.split())}")
        return Sounded(rate, pcm, words, phones.segments(ends))

    def _send(self, scheme: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(scheme.encode())
        except BrokenPipeError:
            raise SpeechError("festival ended") from None

    def _answer(self, text: str) -> list[str]:
        """The lines up to the end mark."""
        assert self._process.stdout is not None
        lines: list[str] = []
        deadline = time.monotonic() + LONGEST_S
        while True:
            while b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                lines.append(line.decode("utf-8", "replace"))
                if lines[-1] == _END:
                    return lines[:-1]
                if "ERROR" in lines[-1]:
                    raise SpeechError(f"festival can't speak {text!r}: {lines[-1].strip()}")
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = self._process.stdout.read(65536) if ready else b""
            if not part:
                raise SpeechError(f"festival {'ended' if ready else 'is stuck'} at {text!r}")
            self._unread += part


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def _read(lines: list[str]) -> tuple[tuple[tuple[int, float, float], ...], list[tuple[str, float]]]:
    """Words by their place in the text, and the ends of segments; a word of several parts spans them all."""
    times: dict[int, tuple[float, float]] = {}
    ends: list[tuple[str, float]] = []
    for line in lines:
        match line.split():
            case ["W", index, begin, end] if float(end) > 0:
                times[int(index)] = (times.get(int(index), (float(begin),))[0], float(end))
            case ["S", name, end]:
                ends.append((name, float(end)))
    return tuple((index, begin, end) for index, (begin, end) in sorted(times.items())), ends
