"""The recipe of `models/nano`: calls, voice, ears, tokens, hearing, language model, speech-to-text; all is resumable.

    FOLDER/calls                      sets of made calls; one of them in held-out voices with held-out phrasings
    FOLDER/codec, sounds, ears, …     trainings: state.pt to go on from, progress.jsonl for the curves
    FOLDER/tokens                     the calls as the language models read them
    FOLDER/nano, FOLDER/nano/stt      what comes out: checkpoints that `load_model` takes

Or it goes on from a model that it made before (`going_on`): the codecs and the tokenizer stay, and with them what codes
and pieces mean; the language model and speech-to-text learn from calls that are made anew. With `new_ears` the voice
stays alone, and callers are heard by new ears that go on from those before, or from their convolutions where the shape
is another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from agent.moshi.config import PAD_TOKEN
from agent.moshi.mimi import Mimi
from agent.moshi.text import Tokenizer
from agent.train import codec, ears, heard, lm, sounds, stt
from agent.train.dataset import read_list, write_list
from agent.train.dialogues import (
    Shares,
    callers_script,
    evaluation_script,
    jumbled_script,
    saying_script,
    training_script,
)
from agent.train.produce import LIST, Recipe, make_calls
from agent.train.script import Script
from agent.train.tokenizer import PIECES, train_tokenizer
from agent.train.tokens import encode_calls
from agent.train.trainer import Plan, processes_for, train

CODEBOOKS, HEARD, CARD = 8, 14, 512  # of what the agent says, of what it hears; entries

MIMI: Mapping[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 128, "causal": True, "n_filters": 12, "n_residual_layers": 1, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7,
        "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none", "pad_mode": "constant",
        "ratios": [8, 6, 5, 4], "true_skip": True},
    "quantizer": {
        "dimension": 64, "n_q": CODEBOOKS, "bins": CARD, "input_dimension": 128, "output_dimension": 128},
    "transformer": {
        "d_model": 128, "num_heads": 4, "num_layers": 2, "causal": True, "layer_scale": 0.1, "context": 50,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 512, "input_dimension": 128, "output_dimensions": [128]},
}
# What hears callers: wider and deeper than the voice, as it has to tell words, and half of it is enough to. Its
# convolutions are as MIMI's.
EARS: Mapping[str, Any] = {
    **MIMI, "seanet": {**MIMI["seanet"], "dimension": 192},
    "quantizer": {**MIMI["quantizer"], "dimension": 64, "n_q": HEARD, "input_dimension": 192, "output_dimension": 192},
    "transformer": {**MIMI["transformer"], "d_model": 192, "num_layers": 6, "dim_feedforward": 768,
                    "input_dimension": 192, "output_dimensions": [192]},
}
LM: Mapping[str, Any] = {
    "dim": 256, "text_card": PIECES, "existing_text_padding_id": PAD_TOKEN, "n_q": CODEBOOKS + HEARD,
    "dep_q": CODEBOOKS,
    "card": CARD, "num_heads": 4, "num_layers": 6, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
    "context": 1500, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 128, "depformer_dim_feedforward": 528, "depformer_num_heads": 4, "depformer_num_layers": 2,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": CODEBOOKS,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0] + [0] + [1] * (CODEBOOKS - 1) + [0] + [1] * (HEARD - 1),
    "moshi_name": lm.WEIGHTS, "mimi_name": codec.WEIGHTS, "mimi_config_name": codec.CONFIG,
    "tokenizer_name": "tokenizer.model",
    # colder than the 7B's: a small model's second choices are seldom good ones
    "lm_gen_config": {"temp": 0.5, "temp_text": 0.3, "top_k": 50, "top_k_text": 25},
}


@dataclass(frozen=True)
class CallSet:
    """Calls of 65 s on average, from script number `first` on; callers alone, 25 s."""

    first: int
    count: int
    seed: int
    shares: Shares = field(default_factory=Shares)


CODEC, CALLS, CALLERS, JUMBLED, SAYING, HELD_OUT = "codec", "calls", "callers", "jumbled", "saying", "held_out"
_ALONE = (CALLERS, JUMBLED)  # nobody answers
_BEFORE, _HEARD_TWICE = "callers_before", 200  # callers by the ears of before, where there are new ones
SETS: Mapping[str, CallSet] = {
    CODEC: CallSet(400, 400, seed=1),
    HELD_OUT: CallSet(20, 20, seed=1),
    CALLS: CallSet(12_600, 1800, seed=7),
    "questions": CallSet(1_010_500, 1500, seed=8, shares=Shares(booking=0.06, change=0.03, cancel=0.02)),
    SAYING: CallSet(3_000_000, 1500, seed=10),
    CALLERS: CallSet(2_000_000, 6000, seed=9),
    JUMBLED: CallSet(4_000_000, 2600, seed=11),
}
SETS_TO_GO_ON: Mapping[str, CallSet] = {
    HELD_OUT: CallSet(20, 20, seed=1),
    CALLS: CallSet(12_600, 400, seed=7),
    "questions": CallSet(1_010_500, 1000, seed=8, shares=Shares(booking=0.06, change=0.03, cancel=0.02, silence=0.03)),
    SAYING: CallSet(3_000_000, 1200, seed=10),
    CALLERS: CallSet(2_000_000, 6000, seed=9),
    JUMBLED: CallSet(4_000_000, 2600, seed=11),
}


_WRITTEN: Mapping[str, Callable[[int], Script]] = {
    CALLERS: callers_script, JUMBLED: jumbled_script, SAYING: saying_script}


@dataclass(frozen=True)
class NanoRecipe:
    """How much of everything; how long it takes, in docs/training.md."""

    sets: Mapping[str, CallSet] = field(default_factory=lambda: SETS)
    seed: int = 7
    codec_steps: int = 5500
    sounds_steps: int = 5000
    ears_steps: int = 8000
    stt_steps: int = 12000
    hearing_steps: int = 8000
    lm_steps: int = 3000
    mimi: Mapping[str, Any] = field(default_factory=lambda: MIMI)  # the voice, and what hears sounds
    ears: Mapping[str, Any] = field(default_factory=lambda: EARS)
    lm: Mapping[str, Any] = field(default_factory=lambda: LM)
    tokenizer_scripts: int = 3000
    codec_spec: Mapping[str, Any] = field(default_factory=dict)  # what differs from CodecSpec's defaults
    sounds_spec: Mapping[str, Any] = field(default_factory=dict)
    ears_spec: Mapping[str, Any] = field(default_factory=dict)
    lm_spec: Mapping[str, Any] = field(default_factory=dict)
    stt_spec: Mapping[str, Any] = field(default_factory=lambda: {
        "heads": 4, "text_dropout": 0.3, "rest_dropout": 0.15})
    hearing_spec: Mapping[str, Any] = field(default_factory=dict)
    of: Path | None = None  # a folder like FOLDER/nano, to go on from
    new_ears: bool = False  # where it goes on: not with the ears that are there
    lm_rate: float = 1.2e-3
    stt_rate: float = 1.5e-3


def going_on(of: Path, *, new_ears: bool = False) -> NanoRecipe:
    """The recipe that goes on from a model of this one's shape."""
    lm_steps, lm_rate, stt_steps = (2800, 1.2e-3, 3000) if new_ears else (2200, 8e-4, 2200)
    return NanoRecipe(sets=SETS_TO_GO_ON, of=of, new_ears=new_ears, lm_steps=lm_steps, lm_rate=lm_rate,
                      stt_steps=stt_steps, stt_rate=1.2e-3)


def sounds_plan(steps: int, *, seed: int, processes: int, device: str) -> Plan:
    """A training of what hears sounds (sounds.py) for ears."""
    return Plan(steps, learning_rate=1.2e-3, betas=(0.9, 0.98), weight_decay=1e-2, warmup=200, final=0.02, clip=2.0,
                seed=seed, processes=processes, device=device)


def ears_plan(steps: int, *, seed: int, processes: int, device: str) -> Plan:
    """A training of ears (ears.py)."""
    plan = sounds_plan(steps, seed=seed, processes=processes, device=device)
    return replace(plan, learning_rate=1.5e-3, muon=True)


def train_ears(folder: Path, config: Mapping[str, Any], of: Path, calls: Sequence[Path], held_out: Path, plan: Plan,
               tell: Callable[[str], None] = print, **different: Any) -> None:
    """Ears with the convolutions of the Mimi in the folder `of`: first hear all callers by these, then learn from that.
    `different`: of EarsSpec. Raises DatasetError, TrainingError."""
    vocabulary = heard.vocabulary_of(calls)
    files = {}
    for name, lists in (("callers", calls), ("held_out", [held_out])):
        files[name] = folder / f"heard_{name}.safetensors"
        if not files[name].exists():
            heard.hear_calls(lists, of, vocabulary, files[name], workers=plan.processes,
                             progress=_every_tenth(f"heard of {name}", tell))
    train(ears.make_task, ears.EarsSpec(config, of, files["callers"], files["held_out"], **different), plan, folder,
          tell)


STAGES = ("data", "codec", "sounds", "ears", "tokens", "hearing", "lm", "stt")


def train_nano(folder: Path, recipe: NanoRecipe, *, device: str = "cpu", processes: int | None = None,
               stages: tuple[str, ...] = STAGES, tell: Callable[[str], None] = print) -> Path:
    """Run the stages in their order, each from where it was left. Returns the checkpoint's folder.

    Raises what the stages raise: DatasetError, SpeechError, TrainingError, OSError.
    """
    work = _Work(folder, recipe, device, processes or processes_for(device), tell)
    for stage in STAGES:
        if stage in stages:
            tell(f"stage: {stage}")
            getattr(work, f"_{stage}")()
    return work.out


@dataclass
class _Work:
    folder: Path
    recipe: NanoRecipe
    device: str
    processes: int
    tell: Callable[[str], None]

    @property
    def out(self) -> Path:
        return self.folder / "nano"

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer.model"

    def _data(self) -> None:
        for name, made in self.recipe.sets.items():
            numbers = range(made.first, made.first + made.count)
            if name == HELD_OUT:
                scripts, how = [evaluation_script(number) for number in numbers], Recipe(made.seed, "held_out_voices")
            else:
                written = _WRITTEN.get(name, partial(training_script, shares=made.shares))
                scripts = [written(number) for number in numbers]
                how = Recipe(made.seed)
            make_calls(self._calls(name).parent, scripts, how, workers=self.processes,
                       progress=_every_tenth(name, self.tell))

    def _codec(self) -> None:
        if self.recipe.of is not None:
            self._take(self.recipe.of, dict.fromkeys([self.tokenizer.name]))
            apart = (self.recipe.of / codec.VOICE).exists()  # older models have one codec for both sides
            if apart:
                self._take(self.recipe.of, dict.fromkeys([codec.VOICE, codec.VOICE_CONFIG]))
            if not self.recipe.new_ears:
                self._take(self.recipe.of, dict.fromkeys([codec.CONFIG, codec.WEIGHTS]))
            elif not apart:
                self._take(self.recipe.of, {codec.CONFIG: codec.VOICE_CONFIG, codec.WEIGHTS: codec.VOICE})
            return
        spec = codec.CodecSpec(self.recipe.mimi, (self._calls(CODEC),), self._calls(HELD_OUT), **self.recipe.codec_spec)
        plan = Plan(self.recipe.codec_steps, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, warmup=100,
                    final=0.05, clip=5.0, seed=self.recipe.seed, processes=self.processes, device=self.device)
        train(codec.make_task, spec, plan, self.folder / "codec", self.tell)
        self._take(self.folder / "codec", {codec.CONFIG: codec.VOICE_CONFIG, codec.WEIGHTS: codec.VOICE})

    def _sounds(self) -> None:
        if self.recipe.of is not None:
            return
        spec = sounds.SoundsSpec(self.recipe.mimi, tuple(map(self._calls, self._alone())), self._calls(HELD_OUT),
                                 **self.recipe.sounds_spec)
        plan = sounds_plan(self.recipe.sounds_steps, seed=self.recipe.seed, processes=self.processes,
                           device=self.device)
        train(sounds.make_task, spec, plan, self.folder / "sounds", self.tell)

    def _ears(self) -> None:
        if self.recipe.of is not None and not self.recipe.new_ears:
            return
        plan = ears_plan(self.recipe.ears_steps, seed=self.recipe.seed, processes=self.processes, device=self.device)
        train_ears(self.folder / "ears", self.recipe.ears, self.recipe.of or self.folder / "sounds",
                   [self._calls(name) for name in self._alone()], self._calls(HELD_OUT), plan, self.tell,
                   **self.recipe.ears_spec)
        self._take(self.folder / "ears", dict.fromkeys([codec.CONFIG, codec.WEIGHTS]))

    def _whole_calls(self) -> tuple[str, ...]:
        return tuple(name for name in self.recipe.sets if name not in (CODEC, HELD_OUT, SAYING, *_ALONE))

    def _alone(self) -> tuple[str, ...]:
        return tuple(name for name in self.recipe.sets if name in _ALONE)

    def _tokens(self) -> None:
        if not self.tokenizer.exists():
            train_tokenizer(self.tokenizer, pieces=self.recipe.lm["text_card"], scripts=self.recipe.tokenizer_scripts)
        mimi, voice = codec.load_both(self.out)
        kinds = {CALLS: self._whole_calls(), CALLERS: self._alone(), HELD_OUT: (HELD_OUT,)}
        if SAYING in self.recipe.sets:
            kinds[SAYING] = (SAYING,)
        for encoded, names in kinds.items():
            self._encode(encoded, [self._calls(name) for name in names], mimi, voice)
        if self.recipe.of is not None and self.recipe.new_ears:
            some = self._calls(CALLERS).with_name("some.jsonl")
            write_list(some, read_list(self._calls(CALLERS))[:_HEARD_TWICE])
            self._encode(_BEFORE, [some], *codec.load_both(self.recipe.of))

    def _encode(self, name: str, lists: Sequence[Path], mimi: Mimi, voice: Mimi) -> None:
        if not (out := self._encoded(name)).exists():
            encode_calls(lists, mimi.to(self.device), Tokenizer(self.tokenizer), out, voice=voice.to(self.device),
                         workers=self.processes, progress=_every_tenth(f"tokens of {name}", self.tell))

    def _lm(self) -> None:
        begins = {"ears": self.folder / "hearing"} if self.recipe.of is None else {"of": self.recipe.of}
        if self.recipe.new_ears:
            begins |= {"new_ears": self.out, "heard_before": self._encoded(_BEFORE)}
        apart = (self.out / codec.VOICE).exists()
        voice = {"voice_name": codec.VOICE, "voice_config_name": codec.VOICE_CONFIG} if apart else {}
        sayings = {"sayings": self._encoded(SAYING)} if SAYING in self.recipe.sets else {}
        spec = lm.LMSpec({**self.recipe.lm, **voice, "text_card": len(Tokenizer(self.tokenizer))},
                         self._encoded(CALLS), self._encoded(HELD_OUT), self._encoded(CALLERS),
                         **{**begins, **sayings, **self.recipe.lm_spec})
        plan = Plan(self.recipe.lm_steps, learning_rate=self.recipe.lm_rate, muon=True, warmup=100,
                    seed=self.recipe.seed, processes=self.processes, device=self.device, evaluate_every=250,
                    save_every=250)
        train(lm.make_task, spec, plan, self.folder / "lm", self.tell)
        self._take(self.folder / "lm", dict.fromkeys([lm.WEIGHTS, lm.CONFIG]))

    def _stt(self) -> None:
        of = {} if self.recipe.of is None else {"of": self.recipe.of / "stt"}
        if self.recipe.new_ears:
            of["heard_before"] = self._encoded(_BEFORE)
        self._train_stt(self.out / "stt", self.recipe.stt_steps, {**of, **self.recipe.stt_spec})

    def _hearing(self) -> None:
        """The language model's layers, before they can speak: with its memory, or they'd be lost in a long call."""
        if self.recipe.of is not None:
            return
        config = self.recipe.lm
        lent = {"dim": config["dim"], "layers": config["num_layers"], "heads": config["num_heads"],
                "context": config["context"], "frames": 1024, "batch": 2, "reads_text": False, "acoustic_delay": 1,
                "meant": 1.0, "rest_dropout": 0.15}
        self._train_stt(self.folder / "hearing", self.recipe.hearing_steps, {**lent, **self.recipe.hearing_spec})

    def _train_stt(self, folder: Path, steps: int, different: Mapping[str, Any]) -> None:
        spec = stt.SttSpec((self._encoded(CALLS), self._encoded(CALLERS)), self._encoded(HELD_OUT), codec=self.out,
                           tokenizer=self.tokenizer, **different)
        plan = Plan(steps, learning_rate=self.recipe.stt_rate, muon=True, seed=self.recipe.seed,
                    processes=self.processes, device=self.device, evaluate_every=400, save_every=400)
        train(stt.make_task, spec, plan, folder, self.tell)

    def _calls(self, name: str) -> Path:
        return self.folder / "calls" / name / LIST

    def _encoded(self, name: str) -> Path:
        return self.folder / "tokens" / f"{name}.safetensors"

    def _take(self, folder: Path, names: Mapping[str, str | None]) -> None:
        """A folder's files into the checkpoint, by the names that they have there, or by their own."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name, there in names.items():
            shutil.copyfile(folder / name, self.out / (there or name))


def _every_tenth(what: str, tell: Callable[[str], None]) -> Callable[[int, int], None]:
    told = -1

    def progress(made: int, of: int) -> None:
        nonlocal told
        if (tenth := 10 * made // max(1, of)) > told:
            told = tenth
            tell(f"{what}: {made} of {of}")

    return progress
