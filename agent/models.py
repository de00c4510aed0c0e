"""The models that a worker serves: the agent's own and `echo`, loaded as the settings say."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from agent.engine import EchoEngine, MoshiEngine, StepInputs, measure_threads
from agent.monologue import word_splitter
from agent.moshi.checkpoint import Model, load_model
from agent.moshi.graphs import Capture, CudaCapture
from agent.moshi.kv import KVSettings
from agent.moshi.quantised import EightBits
from agent.moshi.random_model import make_random_model
from agent.moshi.speech import SpeechError, load_speech
from agent.moshi.text import Tokenizer
from agent.moshi.transcribe import lag_frames
from agent.synthesis import Synthesiser
from agent.worker import Served
from calls.settings import RANDOM, Settings, SettingsError

log = logging.getLogger(__name__)

FRAME_RATE = 12.5  # of all models of the family
PAGE_FRAMES = 128  # of a call's memory that it takes at a time on a GPU: ten seconds

ECHO = "echo"
AUTO, OFF = "auto", "off"
STT_FOLDER = "stt"


def load_models(settings: Settings) -> dict[str, Served]:
    """By the name under which bridges ask for them."""
    if settings.model_name == ECHO:
        raise SettingsError("TANDEM_MODEL: `echo` is always served; name a model for the agent")
    ensure_model(settings)
    model = load_agent_model(settings)
    stt = load_stt_model(settings, model)
    engine = MoshiEngine(model, slots=settings.slots, stt=stt, voices=settings.voices,
                         kv=kv_settings(settings, model.device), capture=capture_on(model.device))
    set_threads(engine, settings)
    _prepare_steps(engine)
    _warm_up(engine)
    tokenizer = Tokenizer(model.tokenizer_path) if model.tokenizer_path else None
    transcript = None
    if stt is not None and stt.tokenizer_path is not None:
        transcript = Tokenizer(stt.tokenizer_path), lag_frames(stt)
        log.info("callers' words are written by %s", settings.stt if settings.stt != AUTO else stt.name)
    models = {settings.model_name: Served(engine, tokenizer, transcript, load_synthesiser(settings, model, tokenizer))}
    if settings.echo_slots:
        models[ECHO] = Served(EchoEngine(slots=settings.echo_slots), None)
    return models


def set_threads(engine: MoshiEngine, settings: Settings) -> None:
    """Give torch as many threads as the settings say, or as make this engine's step fastest here."""
    if engine.device.type == "cpu":
        threads = settings.threads or measure_threads(engine)
        torch.set_num_threads(threads)
        log.info("%s steps on %d thread%s", settings.model_name, threads, "" if threads == 1 else "s")


def capture_on(device: torch.device) -> Capture | None:
    """How steps are captured there; None: they aren't."""
    return CudaCapture(device) if device.type == "cuda" else None


def _prepare_steps(engine: MoshiEngine) -> None:
    """A worker whose steps can't be captured goes on without: slower, and it says so."""
    try:
        engine.prepare_steps()
    except RuntimeError as error:
        log.error("steps run operation by operation, since they can't be captured: %s", str(error).splitlines()[0])


def _warm_up(engine: MoshiEngine) -> None:
    """The first steps are slow, as libraries choose their ways: no call should wait for that."""
    silence = np.zeros((engine.slots, engine.info.frame_samples), np.float32)
    for rows in range(1, engine.slots + 1):
        sampling = engine.default_sampling(rows)
        for fresh in (True, False):
            engine.step(StepInputs.free(range(rows), [fresh] * rows, silence[:rows], engine.info, sampling))


def load_agent_model(settings: Settings) -> Model:
    """The model that `settings.model` names, on the device and in the type that they ask for."""
    ensure_model(settings)
    device = device_of(settings.device)
    source = str(random_model_path(settings)) if settings.model == RANDOM else settings.model
    dtype = default_dtype(device) if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return load_model(source, device=device, dtype=dtype, weights=eight_bits(settings.weights),
                      conditions=settings.conditions)


def default_dtype(device: torch.device) -> torch.dtype | None:
    """The checkpoint's own on a GPU (None). On a CPU float32, except where it multiplies bf16 by itself (AMX)."""
    if device.type != "cpu":
        return None
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def load_stt_model(settings: Settings, agent: Model) -> Model | None:
    """The model that writes down what callers say, beside the agent's: the one that the settings name, or the agent's
    own, in its folder `stt`, if it has one. It must hear the same codes, which the engine checks."""
    if settings.stt == OFF:
        return None
    source: str | Path = settings.stt
    if settings.stt == AUTO:
        source = agent.files["moshi_name"].path.parent / STT_FOLDER
        if not (source / "config.json").is_file():
            return None
    return load_model(source, device=agent.device, dtype=agent.lm.dtype, weights=eight_bits(settings.weights))


def load_synthesiser(settings: Settings, agent: Model, tokenizer: Tokenizer | None) -> Synthesiser | None:
    """The text-to-speech model in whose voice lines are said, where the settings name one. Raises CheckpointError."""
    if settings.tts_model is None:
        return None
    if tokenizer is None or not agent.lm.config.agent_codebooks:
        raise SettingsError(f"TANDEM_TTS_MODEL: {agent.name} says nothing, so nothing is said in its place")
    try:
        speech = load_speech(settings.tts_model, settings.tts_voice, device=agent.device,
                             dtype=torch.float32 if agent.device.type == "cpu" else None)
        synthesiser = Synthesiser(speech, agent, word_splitter(tokenizer))
    except SpeechError as error:
        raise SettingsError(f"TANDEM_TTS_MODEL: {error}") from None
    log.info("lines are said by %s", speech.name)
    return synthesiser


def eight_bits(setting: Literal["auto", "int8", "fp8"]) -> EightBits | None:
    return None if setting == "auto" else setting


def kv_settings(settings: Settings, device: torch.device | None = None) -> KVSettings:
    """On a GPU calls take pages as they grow older, elsewhere each has its whole context from the start."""
    kind = eight_bits(settings.kv)
    if device is None or device.type != "cuda":
        return KVSettings(kind, settings.sinks)
    pool = None
    if settings.kv_pool_s:
        average = math.ceil(settings.kv_pool_s * FRAME_RATE / PAGE_FRAMES)
        pool = settings.slots * max(0, average - 1)
    return KVSettings(kind, settings.sinks, PAGE_FRAMES, pool)


def ensure_model(settings: Settings) -> None:
    """Make the tiny random model if it is asked for and isn't there yet."""
    path = random_model_path(settings)
    if settings.model == RANDOM and not path.exists():
        log.info("making a tiny model with random weights in %s", path)
        make_random_model(path)


def random_model_path(settings: Settings) -> Path:
    return settings.data_dir / "models" / RANDOM


def device_of(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"TANDEM_DEVICE: {name} is no device; give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SettingsError(f"TANDEM_DEVICE: there is no {name} here")
    return device
