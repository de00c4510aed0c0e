"""A small text-to-speech checkpoint in the layout of kyutai/tts-1.6b-en_fr, its weights drawn by their names, and what
the reference package says with it: `python tests/golden/speech_case.py` (with `moshi` 0.2.13 installed) writes
`speech.json` anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from agent.moshi.config import MimiConfig
from agent.moshi.mimi import Mimi
from agent.moshi.random_model import LM, MIMI, TEXT_CARD, _bounded, _draw, _tokenizer, _value

EXPECTED = Path(__file__).parent / "speech.json"
TEXT = ("Your table for four is booked: for seven o'clock. <break time=\"0.5s\"/> Thank you for (calling) us today, "
        "and please stay on the line.")
SPEAKER_DIM, VOICE_FRAMES = 12, 7
PLAIN: dict[str, Any] = LM | {
    "n_q": 4, "dep_q": 4, "delays": [0, 0, 2, 2, 2], "num_layers": 3, "context": 40, "text_card": TEXT_CARD,
    "depformer_context": 4, "model_type": "tts", "tts_config": {"audio_delay": 0.64}}
FULL: dict[str, Any] = PLAIN | {
    "text_card_out": 5, "cross_attention": True, "demux_second_text_stream": True, "depformer_low_rank_embeddings": 24,
    "depformer_weights_per_step_schedule": [0, 1, 2, 2], "model_id": {"sig": "x", "epoch": 1},
    "tts_config": {"audio_delay": 0.64, "second_stream_ahead": 2},
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": SPEAKER_DIM}},
        "control": {"type": "lut", "lut": {"n_bins": 3, "dim": 8, "tokenizer": "noop",
                                           "possible_values": ["ok", "noisy", "dirty"]}},
        "cfg": {"type": "lut", "lut": {"n_bins": 4, "dim": 8, "tokenizer": "noop",
                                       "possible_values": ["1.0", "1.5", "2.0", "2.5"]}}},
    "fuser": {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 1, "sum": ["control", "cfg"],
              "prepend": [], "cross": ["speaker_wavs"]}}
CONFIGS = {"full": FULL, "plain": PLAIN}


def write_checkpoint(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """`shapes` of the language model's tensors, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_tokenizer())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mimi_config.json").write_text(json.dumps(MIMI))
    codec = Mimi(MimiConfig.from_dict(MIMI))
    save_file(_bounded(codec, _draw(codec, 0), 0), folder / "mimi.safetensors")
    save_file({name: torch.from_numpy(_value(name, shape, 7).astype(np.float32)) for name, shape in shapes.items()},
              folder / "model.safetensors")
    voice = np.random.default_rng(3).standard_normal((1, SPEAKER_DIM, VOICE_FRAMES)).astype(np.float32)
    save_file({"speaker_wavs": torch.from_numpy(voice)}, folder / "voice.safetensors")


def _by_the_reference(name: str, folder: Path) -> dict[str, Any]:
    import copy

    import sentencepiece
    from moshi.models import loaders, tts
    from safetensors.torch import load_file

    config = CONFIGS[name]
    own = ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "model_type", "tts_config", "model_id")
    lm = loaders.get_moshi_lm(None, lm_kwargs=copy.deepcopy({k: v for k, v in config.items() if k not in own}),
                              device="cpu", dtype=torch.float32)
    shapes = {key: tuple(tensor.shape) for key, tensor in lm.state_dict().items()}
    write_checkpoint(folder, config, shapes)
    lm.load_state_dict(load_file(folder / "model.safetensors"))
    lm.eval()

    class Codec:
        frame_rate, sample_rate = 12.5, 24000

        def set_num_codebooks(self, _: int) -> None:
            pass

    class Nobody:
        def prepare_and_provide(self, _: object) -> None:
            return None

    about = config["tts_config"]
    model = tts.TTSModel(
        lm=lm, mimi=Codec(), tokenizer=sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")),
        voice_suffix="", voice_repo="", delay_steps=int(about["audio_delay"] * 12.5), n_q=4, temp=0.0,
        machine=tts.StateMachine(tts.TokenIds(lm.text_card + 1), about.get("second_stream_ahead", 0), 8, 2))
    entries = model.prepare_script([TEXT], padding_between=1)
    attributes = None
    if name == "full":
        attributes = model.make_condition_attributes([folder / "voice.safetensors"], cfg_coef=2.0)
    else:
        object.__setattr__(lm, "condition_provider", Nobody())
    result = model.generate([entries], [attributes], use_sampling=False)
    codes = torch.cat(result.frames, dim=2)[0, 1:, model.delay_steps:]
    return {"shapes": shapes, "codes": codes.tolist(), "begun": result.all_consumption_times[0]}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made, torch.inference_mode():
        EXPECTED.write_text(json.dumps({name: _by_the_reference(name, Path(made) / name) for name in CONFIGS}) + "\n")
