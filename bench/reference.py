"""Ours beside the reference package: the same random weights, one thread, float32, steps taken in turns.

The reference is optional: bench/requirements.txt says how to install it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from agent.moshi.config import FIRST_MIMI, LMConfig, MimiConfig
from agent.moshi.generate import Controls, Generator, GeneratorState
from agent.moshi.layers import Rows
from agent.moshi.lm import LanguageModel
from agent.moshi.mimi import Mimi
from agent.moshi.sampling import tier_of

MISSING = "The reference package isn't installed: see bench/requirements.txt."

CPU = torch.device("cpu")
CODEBOOKS = 8
CONTEXT = 1200
LM = {
    "dim": 1024, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 2 * CODEBOOKS, "dep_q": CODEBOOKS,
    "card": 2048, "num_heads": 16, "num_layers": 8, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
    "context": CONTEXT, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 512, "depformer_dim_feedforward": 2112,
    "depformer_num_heads": 8, "depformer_num_layers": 4, "depformer_layer_scale": None,
    "depformer_multi_linear": True, "depformer_context": CODEBOOKS, "depformer_max_period": 10000,
    "depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    "delays": [0] + ([0] + [1] * (CODEBOOKS - 1)) * 2,
}


def run() -> list[str]:
    """Lines of a Markdown table; one line if the reference is missing."""
    try:
        from moshi.models import LMGen, loaders
    except ImportError:
        return [MISSING]
    torch.set_num_threads(1)
    lines = ["Milliseconds a step, medians; ours / theirs in the same run, float32, one thread.", "",
             "| | ours | reference | ours / reference |", "|---|---|---|---|"]

    def add(what: str, ours: float, theirs: float) -> None:
        lines.append(f"| {what} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")

    with torch.inference_mode():
        for slots in (1, 4):
            add(f"Mimi at full size, encode + decode, {slots} at once", *_mimi(loaders, slots))
        reference, ours = _language_models(loaders)
        single = 0.0
        for slots in (1, 4, 16):
            for filled, state in ((0, "empty"), (CONTEXT, "full")):
                our_ms, their_ms = _lm(LMGen, reference, ours, slots, filled)
                if slots == 1 and filled:
                    single = their_ms
                add(f"LM step, dim {LM['dim']} x {LM['num_layers']} layers, {slots} slots, context {state}",
                    our_ms, their_ms)
        lines += ["", f"16 slots against 16 single reference steps, context full: "
                      f"{16 * single / our_ms:.1f} times as fast."]
    return lines


def _in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median milliseconds of each; one after the other, so that what else the machine does meets both."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(times + 2):
        for call, into in zip((ours, theirs), taken, strict=True):
            began = time.perf_counter()
            call()
            if turn >= 2:
                into.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken[0]), 1000 * statistics.median(taken[1])


def _mimi(loaders: Any, slots: int) -> tuple[float, float]:
    torch.manual_seed(0)
    reference = loaders.get_mimi(None, None, num_codebooks=CODEBOOKS)
    for name, buffer in reference.named_buffers():
        if name.endswith("embedding_sum"):
            buffer.normal_()
    mimi = Mimi(MimiConfig.from_dict(FIRST_MIMI))
    mimi.load_state_dict(reference.state_dict())
    encoder, decoder = mimi.encoder_state(slots, CPU), mimi.decoder_state(slots, CPU)
    pcm = 0.1 * torch.randn(slots, 1920)
    frame = 0

    def ours() -> None:
        nonlocal frame
        rows = Rows.of(range(slots), [frame] * slots, CPU)
        mimi.decode_step(mimi.encode_step(pcm, CODEBOOKS, encoder, rows), decoder, rows)
        frame += 1

    with reference.streaming(slots):
        return _in_turns(ours, lambda: reference.decode(reference.encode(pcm[:, None])), 60 // slots)


def _language_models(loaders: Any) -> tuple[Any, LanguageModel]:
    torch.manual_seed(0)
    reference = loaders.get_moshi_lm(None, LM, device="cpu", dtype=torch.float32).eval()
    ours = LanguageModel(LMConfig.from_dict(LM))
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def _lm(generator_class: Any, reference: Any, lm: LanguageModel, slots: int, filled: int) -> tuple[float, float]:
    theirs = generator_class(reference)
    generator, state = Generator(lm), GeneratorState(lm, slots, slots)
    state.tokens.zero_()  # as if the slots had come to where they begin
    codes = torch.randint(0, LM["card"], (slots, CODEBOOKS))
    free = Controls.greedy(slots, CODEBOOKS, CPU)
    controls = Controls(**vars(free) | {  # as the reference draws
        "text_temperature": torch.full((slots,), 0.7), "audio_temperature": torch.full((slots,), 0.8),
        "text_top_k": torch.full((slots,), 25), "audio_top_k": torch.full((slots,), 250),
        "seed": torch.arange(slots), "text_tiers": (tier_of(25),), "audio_tiers": (tier_of(250),)})
    step = filled

    def ours() -> None:
        nonlocal step
        rows = Rows.of(range(slots), [step] * slots, CPU)
        generator.step(codes, controls, state, rows)
        step += 1

    with theirs.streaming(slots):
        return _in_turns(ours, lambda: theirs.step(codes[:, :, None]), max(7, 40 // slots))
