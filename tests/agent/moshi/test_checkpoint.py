"""Official checkpoints: every tensor has its place, both layouts, both types; what is wrong is named in one line."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.moshi.checkpoint import CheckpointError, load_model
from agent.moshi.config import FIRST_MIMI, LMConfig, MimiConfig
from agent.moshi.kv import KVSettings
from agent.moshi.lm import LanguageModel
from agent.moshi.mimi import Mimi
from agent.moshi.sizes import sizes_of
from agent.moshi.stages import Stages

GOLDEN = Path(__file__).parents[2] / "golden"
LAYOUTS = sorted(path.name.removesuffix(".config.json")
                 for path in (GOLDEN / "checkpoint_layouts").glob("*.config.json"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_of_an_official_checkpoint_has_its_place(name):
    config = json.loads((GOLDEN / "checkpoint_layouts" / f"{name}.config.json").read_text())
    with torch.device("meta"):
        module = (Mimi(MimiConfig.from_dict(config)) if name.startswith("mimi")
                  else LanguageModel(LMConfig.from_dict(config)))
    ours = {tensor: list(value.shape) for tensor, value in module.state_dict().items()}
    assert ours == json.loads((GOLDEN / "checkpoint_layouts" / f"{name}.json").read_text())


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint folder to damage."""
    for file in ("config.json", "mimi_config.json", "model.safetensors", "mimi.safetensors"):
        shutil.copy(GOLDEN / "wide" / file, tmp_path / file)
    return tmp_path


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    path.unlink()
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def fuse(tensors: dict[str, torch.Tensor]) -> None:
    """The older layout: all steps' projections under one name."""
    found: dict[str, list[str]] = {}
    for name in tensors:
        match = re.fullmatch(r"(.*self_attn\.)(in|out)_projs\.(\d+)\.weight", name)
        if match:
            whole = match[1] + ("in_proj_weight" if match[2] == "in" else "out_proj.weight")
            found.setdefault(whole, []).append(name)
    for whole, names in found.items():
        names.sort(key=lambda name: int(name.split(".")[-2]))
        tensors[whole] = torch.cat([tensors.pop(name) for name in names])


def test_both_layouts_of_projections_load_the_same(folder):
    apart = load_model(folder)
    for file in ("model.safetensors", "mimi.safetensors"):
        rewrite(folder / file, fuse)
    assert not any("in_projs" in name for name in load_file(folder / "model.safetensors"))
    whole = load_model(folder)
    for one, other in ((apart.lm, whole.lm), (apart.mimi, whole.mimi)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(),
                                                     strict=True))


def test_a_checkpoint_may_name_another_codec_for_what_the_agent_says(folder):
    config = json.loads((folder / "config.json").read_text())
    plain = load_model(folder)
    assert plain.voice is plain.mimi
    shutil.copy(folder / "mimi.safetensors", folder / "voice.safetensors")
    rewrite(folder / "voice.safetensors", lambda tensors: tensors.update(
        {name: tensor + 1 for name, tensor in tensors.items() if name.startswith("decoder.")}))
    voice = {"voice_name": "voice.safetensors", "voice_config_name": "mimi_config.json"}
    (folder / "config.json").write_text(json.dumps(config | voice))
    model = load_model(folder)
    ears, voice = model.mimi.state_dict(), model.voice.state_dict()
    assert {name for name in ears if not torch.equal(ears[name], voice[name])} == {
        name for name in ears if name.startswith("decoder.")}


def test_codecs_of_two_sides_that_dont_fit_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    codec = json.loads((folder / "mimi_config.json").read_text())
    shutil.copy(folder / "mimi.safetensors", folder / "voice.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {
        "voice_name": "voice.safetensors", "voice_config_name": "voice_config.json"}))
    (folder / "voice_config.json").write_text(json.dumps(codec | {"sample_rate": 48000, "frame_rate": 25}))
    with pytest.raises(CheckpointError, match="the codecs of its two sides have different frames"):
        load_model(folder)
    (folder / "voice_config.json").unlink()
    with pytest.raises(CheckpointError, match="voice_config.json"):
        load_model(folder)


@pytest.mark.parametrize("on_disk", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_memory", [torch.float32, torch.bfloat16, None])
def test_types_on_disk_and_in_memory_are_free(folder, on_disk, in_memory):
    rewrite(folder / "model.safetensors",
            lambda tensors: tensors.update({name: tensor.to(on_disk) for name, tensor in tensors.items()}))
    model = load_model(folder, dtype=in_memory)
    assert {tensor.dtype for tensor in model.lm.state_dict().values()} == {in_memory or on_disk}
    assert {tensor.dtype for tensor in model.mimi.state_dict().values()} == {torch.float32}
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name].to(tensor.dtype)) for name, tensor in model.lm.state_dict().items())


def set_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def scribble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:40] = b"\xff" * 20
    path.write_bytes(data)


DAMAGES = {
    "missing tensor": (lambda f: rewrite(f / "model.safetensors", lambda t: t.pop("linears.3.weight")),
                       r"model\.safetensors: tensor linears\.3\.weight is missing"),
    "missing projection": (
        lambda f: rewrite(f / "mimi.safetensors", lambda t: t.pop(
            "encoder_transformer.transformer.layers.0.self_attn.in_projs.0.weight")),
        r"tensor encoder_transformer\.transformer\.layers\.0\.self_attn\.in_projs\.0\.weight is missing"),
    "misshapen tensor": (
        lambda f: rewrite(f / "model.safetensors", lambda t: t.update({"emb.2.weight": torch.zeros(49, 95)})),
        r"tensor emb\.2\.weight has shape \[49, 95\], the config asks for \[49, 96\]"),
    "unexpected tensor": (
        lambda f: rewrite(f / "model.safetensors",
                          lambda t: t.update({"spare": torch.zeros(1), "tyre": torch.ones(1)})),
        r"unexpected tensor spare and 1 more: the config has no place for it"),
    "truncated data": (lambda f: cut(f / "model.safetensors", 200_000),
                       r"truncated: tensor .* ends at byte \d+ of 200000"),
    "truncated header": (lambda f: cut(f / "model.safetensors", 100), r"truncated within its header \(100 bytes\)"),
    "empty file": (lambda f: cut(f / "mimi.safetensors", 0), r"mimi\.safetensors: not a safetensors file"),
    "corrupt header": (lambda f: scribble(f / "model.safetensors"), r"corrupt: its header can't be read"),
    "integers": (
        lambda f: rewrite(f / "model.safetensors", lambda t: t.update(
            {"text_linear.weight": torch.zeros(80, 96, dtype=torch.int8)})),
        r"tensor text_linear\.weight is stored as I8; supported are"),
    "unknown key": (lambda f: set_config(f, flavour="mint"), r"config: unknown key 'flavour'"),
    "missing key": (lambda f: set_config(f, card=...), r"config: card is missing"),
    "broken json": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not a JSON file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "named tokenizer": (lambda f: set_config(f, tokenizer_name="words.model"), r"words\.model is missing"),
    "name is no name": (lambda f: set_config(f, moshi_name=7),
                        r"config\.json: moshi_name must be a file's name, not 7"),
    "other codec": (lambda f: set_config(f, card=47), r"codebooks have 47 entries, Mimi's 48"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_checkpoint_is_named_in_one_line(folder, damage):
    spoil, line = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(CheckpointError, match=line) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_source_that_is_nothing_is_named():
    with pytest.raises(CheckpointError, match="/nowhere: no such folder; give a folder, nano, moshiko, .* owner/name@"):
        load_model("/nowhere")


def test_a_config_alone_tells_what_a_model_costs():
    config = json.loads((GOLDEN / "checkpoint_layouts" / "personaplex-7b.config.json").read_text())
    sizes = sizes_of("personaplex", config, FIRST_MIMI, dtype=torch.bfloat16)
    layout = json.loads((GOLDEN / "checkpoint_layouts" / "personaplex-7b.json").read_text())
    of_lm = sum(math.prod(shape) for shape in layout.values())
    assert sizes.parameters - sizes.mimi_parameters == of_lm
    assert sizes.temporal_parameters == pytest.approx(6.708e9, rel=1e-3)
    assert sizes.kv_bytes == 524_288
    assert sizes.call_bytes == pytest.approx(3008 * 524_288 + 16.5e6, rel=1e-3)
    assert sizes.calls_in(80e9) == 34  # the depth steps for the caller take the place of one
    moshi = sizes_of("moshi", {}, FIRST_MIMI, dtype=torch.bfloat16)
    assert moshi.step_bytes == sizes.step_bytes  # the steps that predict the caller aren't taken
    assert 1000 * moshi.floor_s(3350e9, 64, 0.5) == pytest.approx(19.5, abs=0.1)
    small = sizes_of("moshi", {}, FIRST_MIMI, dtype=torch.bfloat16, weights="int8", kv=KVSettings("int8"))
    assert small.step_bytes < 0.52 * moshi.step_bytes
    assert small.calls_in(80e9) > 2 * moshi.calls_in(80e9)


def test_what_a_small_model_is_said_to_weigh_is_what_it_weighs(folder):
    config, mimi_config = (json.loads((folder / name).read_text()) for name in ("config.json", "mimi_config.json"))
    for weights in (None, "int8"):
        sizes = sizes_of("wide", config, mimi_config, dtype=torch.float32, weights=weights)
        model = load_model(folder, dtype=torch.float32, weights=weights)
        tensors = [*model.lm.state_dict().values(), *model.mimi.state_dict().values()]
        assert sizes.weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        stages = [Stages(model, slots).state_rows() for slots in (1, 2)]
        kept = [sum(tensor.numel() * tensor.element_size() for name, tensor in rows.items()
                    if not name.endswith("position")) for rows in stages]
        assert sizes.call_bytes == kept[1] - kept[0]


def test_a_config_without_content_takes_its_depth_steps_from_the_weights(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    names = {key: config.pop(key) for key in ("moshi_name", "mimi_name", "mimi_config_name")}
    monkeypatch.setattr("agent.moshi.checkpoint.FIRST_7B", config | {"dep_q": 8})
    (folder / "config.json").write_text(json.dumps({"model_type": "moshi"} | names))
    assert load_model(folder).lm.config.generated_codebooks == 16


def test_loading_holds_no_second_copy_in_memory(tmp_path):
    config = json.loads((GOLDEN / "lm" / "config.json").read_text()) | {
        "dim": 1024, "num_heads": 8, "num_layers": 3, "text_card": 4000}
    for file in ("mimi_config.json", "mimi.safetensors"):
        shutil.copy(GOLDEN / "lm" / file, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LanguageModel(LMConfig.from_dict(config)).state_dict().items()}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    size = sum(shape.numel() for shape in shapes.values()) * 4
    program = """
import resource, sys
from agent.moshi.checkpoint import load_model
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load_model(sys.argv[1])
print(peak() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True,
                               text=True, cwd=Path(__file__).parents[3]).stdout)
    assert size > 180e6
    assert grown < 1.25 * size
