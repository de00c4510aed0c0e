"""8 bits beside float32: do greedy tokens agree, how far are logits off, what does a step cost.

Tokens are judged given float32's own past: after each step the model is told what float32 took. The golden models have
random weights, whose logits lie close together: there a token flips easily. nano is a trained one.
"""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.moshi.checkpoint import Model, load_model
from agent.moshi.config import LMConfig
from agent.moshi.generate import Controls, Generator, GeneratorState
from agent.moshi.kv import KVSettings
from agent.moshi.layers import Rows, linear
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import maps
from agent.moshi.quantised import EightBits, quantise
from agent.moshi.stages import Stages

ROOT = Path(__file__).parents[1]
MODELS = {"golden lm": ROOT / "tests/golden/lm", "golden wide": ROOT / "tests/golden/wide",
          "golden stt": ROOT / "tests/golden/stt", "nano": ROOT / "models/nano"}
WAYS: dict[str, tuple[torch.dtype, EightBits | None, EightBits | None]] = {
    "bfloat16": (torch.bfloat16, None, None), "int8 weights": (torch.float32, "int8", None),
    "int8 keys and values": (torch.float32, None, "int8"), "fp8 keys and values": (torch.float32, None, "fp8"),
    "int8 both": (torch.float32, "int8", "int8")}
STEPS, SPEED_STEPS = 60, 20
LARGE = {
    "dim": 1024, "text_card": 32000, "n_q": 16, "dep_q": 8, "card": 2048, "num_heads": 16, "num_layers": 8,
    "hidden_scale": 4.125, "context": 1200, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 512, "depformer_dim_feedforward": 2112, "depformer_num_heads": 8, "depformer_num_layers": 4,
    "depformer_multi_linear": True, "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    "delays": [0] + ([0] + [1] * 7) * 2}


def run() -> list[str]:
    torch.set_num_threads(1)
    lines = ["| model | held as | greedy tokens that agree | text logits off, deviations |", "|---|---|---|---|"]
    for name, folder in MODELS.items():
        whole = load_model(folder, dtype=torch.float32)
        tokens, logits = _told(whole, KVSettings(), None)
        for way, (dtype, weights, kv) in WAYS.items():
            model = load_model(folder, dtype=dtype, weights=weights)
            others, other_logits = _told(model, KVSettings(kv), tokens)
            equal = (others == tokens).double().mean().item()
            error = ((other_logits - logits).square().mean().sqrt() / logits.std()).item()
            lines.append(f"| {name} | {way} | {100 * equal:.1f} % | {error:.3f} |")
    lines += ["", "Processor time of a language model's step, one thread, as a share of float32's in the same run:", "",
              "| model | calls | bfloat16 | int8 weights | int8 weights, keys and values |", "|---|---|---|---|---|"]
    large = LanguageModel(LMConfig.from_dict(LARGE))
    for parameter in large.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1]**-0.5)
    for name, lm in (("nano", load_model(MODELS["nano"], dtype=torch.float32).lm), ("1024 x 8 layers", large)):
        lines += [_speed(name, lm, calls) for calls in (1, 4)]
    return lines


@torch.inference_mode()
def _told(model: Model, kv: KVSettings, told: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each step takes [STEPS, 1 + agent codebooks], and its text's logits; `told`: what it is to believe after."""
    config, stages = model.lm.config, Stages(model, 1, kv)
    generator, logits = stages._generator, []
    take_text = generator._take_text

    def watched(x: Tensor, *rest: object) -> object:
        logits.append(linear(x, generator._text_out).float())
        return take_text(x, *rest)  # type: ignore[arg-type]

    generator._take_text = watched  # type: ignore[method-assign,assignment]
    caller = torch.randint(0, config.audio_card, (STEPS, 1, config.caller_codebooks),
                           generator=torch.Generator().manual_seed(0))
    controls, taken = Controls.greedy(1, config.generated_codebooks, model.device), []
    for step in range(STEPS):
        generated = stages.generate([0], [step == 0], caller[step], controls)
        taken.append(torch.cat([generated.text, generated.codes[0, :config.agent_codebooks]]))
        if told is not None:
            ring = stages.generator.tokens
            ring[0, :told.shape[1], (step + 1) % ring.shape[2]] = told[step]
    return torch.stack(taken), torch.cat(logits)


@torch.inference_mode()
def _speed(name: str, lm: LanguageModel, calls: int) -> str:
    small = copy.deepcopy(lm)
    for path in maps(lm):
        module = small.get_submodule(path)
        values, scale = quantise(module.weight, torch.int8)
        module.weight, module.scale = nn.Parameter(values, requires_grad=False), scale
    ways = [(lm, KVSettings()), (copy.deepcopy(lm).to(torch.bfloat16), KVSettings()), (small, KVSettings()),
            (small, KVSettings("int8"))]
    runs = [(Generator(model), GeneratorState(model, calls, calls, kv)) for model, kv in ways]
    codes = torch.zeros(calls, lm.config.caller_codebooks, dtype=torch.int64)
    controls = Controls.greedy(calls, lm.config.generated_codebooks, lm.device)
    taken: list[list[float]] = [[] for _ in ways]
    for step in range(SPEED_STEPS):
        rows = Rows.of(range(calls), [step] * calls, lm.device)
        for (generator, state), into in zip(runs, taken, strict=True):
            began = time.process_time()
            generator.step(codes, controls, state, rows)
            into.append(time.process_time() - began)
    whole, *others = (statistics.median(times[3:]) for times in taken)
    return f"| {name} | {calls} | " + " | ".join(f"{other / whole:.2f}" for other in others) + " |"
