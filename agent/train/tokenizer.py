"""The text tokenizer of a small model: mostly whole words, of what is said in the domain on both sides."""

from __future__ import annotations

import io
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from agent.train.dialogues import training_script

PIECES = 2000
_SCRIPTS = 3000  # of whose lines it is made


def train_tokenizer(path: Path, *, pieces: int = PIECES, scripts: int = _SCRIPTS) -> None:
    """Write a SentencePiece model of training's scripts; EPAD is piece 0 and PAD piece 3, as in Kyutai's."""
    lines = [line.text for seed in range(scripts) for line in training_script(seed).lines]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=pieces, model_type="bpe",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", character_coverage=1.0, byte_fallback=False, num_threads=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
