"""The text stream: SentencePiece tokens <-> text, and tokens -> words with their first and last frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sentencepiece import SentencePieceProcessor

EPAD = 0  # the next frame begins a word
PAD = 3  # no new word begins
WORD_MARK = "\u2581"  # SentencePiece's sign for the space before a word
WORD_TAIL_FRAMES = 4  # a word ends at most so long after its last piece (docs: design, "The monologue")


class TokenizerError(ValueError):
    """One line that names the file and what is wrong with it."""


class Tokenizer:
    """A checkpoint's SentencePiece model."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise TokenizerError(f"{path}: there is no such tokenizer file")
        self.path = path
        try:
            self._processor = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise TokenizerError(f"{path}: not a SentencePiece model") from None

    def __len__(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`."""
        return [int(token) for token in self._processor.encode(text)]

    def decode(self, tokens: list[int]) -> str:
        return str(self._processor.decode(tokens))

    def piece(self, token: int) -> str:
        """The token's piece with its word mark; empty for PAD, EPAD and all that is no text."""
        if token in (EPAD, PAD) or not 0 <= token < len(self):
            return ""
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return ""
        return str(self._processor.id_to_piece(token))


@dataclass(frozen=True)
class TimedWord:
    """A word and the frames, both included, in which its tokens run."""

    text: str
    first_k: int
    last_k: int


@dataclass
class WordTimer:
    """Pieces, one frame at a time, to finished words.

    A word runs from its first piece to just before the next word's first piece, at most WORD_TAIL_FRAMES past its
    last piece. Frames may be missing; k only has to grow.
    """

    _pieces: list[str] = field(default_factory=list)
    _first_k: int = 0
    _last_piece_k: int = 0

    def feed(self, k: int, piece: str) -> TimedWord | None:
        """Take frame k's piece ("" for none); returns the word that this frame finishes, if one."""
        finished = None
        begins = piece.startswith(WORD_MARK)
        if self._pieces and (begins or k > self._last_piece_k + WORD_TAIL_FRAMES):
            finished = self._finish(min(k - 1, self._last_piece_k + WORD_TAIL_FRAMES))
        if piece:
            if not self._pieces:
                self._first_k = k
            self._pieces.append(piece)
            self._last_piece_k = k
        return finished

    def end(self) -> TimedWord | None:
        """The word that the stream's end cuts short, if one."""
        return self._finish(self._last_piece_k) if self._pieces else None

    def _finish(self, last_k: int) -> TimedWord | None:
        text = "".join(self._pieces).replace(WORD_MARK, " ").strip()
        self._pieces.clear()
        return TimedWord(text, self._first_k, last_k) if text else None
