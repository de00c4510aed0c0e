"""A tiny model with random weights: it talks nonsense, at once, on any machine, through the real code path.

Its checkpoint folder has the official layout, its tokenizer is trained on the spot, and it is made to behave like a
speaker on the surface: mostly PAD, a word now and then, sound that is audible and bounded.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer

from agent.moshi.config import LMConfig, MimiConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.mimi import Mimi
from agent.moshi.text import EPAD, PAD

TEXT_CARD = 200
CARD = 64
CODEBOOKS = 4  # of either side: each costs a depth step
PEAK = 0.5  # of the agent's sound, 1.0 being full scale
PAD_LOGIT = 4.0  # above the spread of the other tokens' logits, about 1: some two thirds of the frames are padding
EPAD_LOGIT = 2.0

SENTENCES = """
Good morning, you have reached the front desk. How can I help you today?
Thank you for calling. One moment, please, I will look that up for you.
Your table for four is booked for seven o'clock on Friday evening.
I am sorry, I did not catch that. Could you say it once more?
The office is open from nine in the morning until five in the afternoon.
Yes, of course. May I have your name and your phone number?
No problem at all. Is there anything else that I can do for you?
The next train to the city leaves in twenty minutes from platform three.
Let me put you through to a colleague who knows more about this.
Your order was sent on Monday and should arrive within two days.
Please stay on the line while I check whether the room is free.
It was a pleasure to talk with you. Have a very nice day. Goodbye.
The weather tomorrow will be sunny with a light wind from the west.
I can move your appointment to Wednesday or Thursday, which do you prefer?
That would be twelve euros and fifty cents, and you can pay at the door.
""".strip().splitlines()

MIMI: dict[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 64, "causal": True, "n_filters": 8, "n_residual_layers": 1, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7,
        "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none", "pad_mode": "constant",
        "ratios": [8, 6, 5, 4], "true_skip": True},
    "quantizer": {"dimension": 32, "n_q": CODEBOOKS, "bins": CARD, "input_dimension": 64, "output_dimension": 64},
    "transformer": {
        "d_model": 64, "num_heads": 4, "num_layers": 2, "causal": True, "layer_scale": 0.01, "context": 250,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 256, "input_dimension": 64, "output_dimensions": [64]},
}
LM: dict[str, Any] = {
    "dim": 128, "text_card": TEXT_CARD, "existing_text_padding_id": PAD, "n_q": 2 * CODEBOOKS, "dep_q": CODEBOOKS,
    "card": CARD, "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
    "context": 250, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 64, "depformer_dim_feedforward": 264, "depformer_num_heads": 4, "depformer_num_layers": 1,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": CODEBOOKS,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0] + ([0] + [1] * (CODEBOOKS - 1)) * 2,
    "moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "mimi_config_name": "mimi_config.json",
    "tokenizer_name": "tokenizer.model",
}


def make_random_model(path: Path, *, lm: dict[str, Any] = LM, mimi: dict[str, Any] = MIMI, seed: int = 0) -> None:
    """Write the checkpoint folder `path`, all of it or nothing; the same seed gives the same weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=path.name, dir=path.parent))
    try:
        (making / "tokenizer.model").write_bytes(_tokenizer())
        (making / "config.json").write_text(json.dumps(lm, indent=2) + "\n")
        (making / "mimi_config.json").write_text(json.dumps(mimi, indent=2) + "\n")
        language_model = _draw(LanguageModel(LMConfig.from_dict(lm)), seed)
        _lean_towards_padding(language_model, lm["dim"])
        save_file(language_model, making / "model.safetensors")
        codec = Mimi(MimiConfig.from_dict(mimi))
        save_file(_bounded(codec, _draw(codec, seed), seed), making / "mimi.safetensors")
        making.replace(path)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _tokenizer() -> bytes:
    """A SentencePiece model whose first ids are those of Moshi's: EPAD is <unk>, then BOS, EOS and PAD."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=TEXT_CARD, model_type="bpe",
        unk_id=EPAD, bos_id=1, eos_id=2, pad_id=PAD, minloglevel=2)
    return model.getvalue()


def _draw(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep the scale of what flows through: they depend on the seed and the tensor's name alone."""
    return {name: torch.from_numpy(_value(name, tuple(tensor.shape), seed).astype(np.float32))
            for name, tensor in module.state_dict().items()}


def _value(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float64]:
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith(("_initialized", "cluster_usage", "alpha")) or ("norm" in name and name.endswith("weight")):
        return np.ones(shape)
    if name.endswith(".bias"):
        return np.zeros(shape)
    if name.endswith(".scale"):
        return np.full(shape, 0.3)
    if "emb" in name:  # embeddings and codebooks
        return draw
    return np.asarray(draw / np.sqrt(np.prod(shape[1:])))


def _lean_towards_padding(lm: dict[str, torch.Tensor], dim: int) -> None:
    """Text logits have no bias, so all embeddings share a direction along which PAD's and EPAD's rows read one."""
    for name, tensor in lm.items():
        if name.startswith(("emb.", "text_emb.")):
            tensor[:, 0] = np.sqrt(dim) / 2  # nine of them outweigh all the rest: the normed stream's first value is
            # then nearly the square root of dim
    lm["text_linear.weight"][:, 0] = 0
    for token, logit in ((PAD, PAD_LOGIT), (EPAD, EPAD_LOGIT)):
        lm["text_linear.weight"][token] = 0
        lm["text_linear.weight"][token, 0] = logit / np.sqrt(dim)
    lm["text_linear.weight"][1:PAD] = 0  # BOS and EOS stay unlikely


@torch.no_grad()
def _bounded(codec: Mimi, weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The last convolution is linear, so its weight sets how loud the sound is that random codes make."""
    codec.load_state_dict(weights)
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, CARD, (4, CODEBOOKS, 50)))
    last = max((name for name in weights if name.startswith("decoder.model.") and name.endswith("conv.conv.weight")),
               key=lambda name: int(name.split(".")[2]))
    weights[last] *= PEAK / codec.decode(codes).abs().max()
    return weights
