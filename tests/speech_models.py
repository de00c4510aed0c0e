"""Small text-to-speech checkpoints with random weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

GOLDEN = Path(__file__).parent / "golden"


def speech_case() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speech_case", GOLDEN / "speech_case.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speech_checkpoint(folder: Path, name: str) -> Path:
    """`full` needs voice.safetensors beside it, `plain` takes no voice."""
    case = speech_case()
    shapes = json.loads(case.EXPECTED.read_text())[name]["shapes"]
    case.write_checkpoint(folder / name, case.CONFIGS[name], shapes)
    return folder / name
