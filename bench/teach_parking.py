"""Calls in which parking costs five dollars: to learn from, and in held-out voices and phrasings to judge by.

    python teach_parking.py make FOLDER           calls in FOLDER/training and FOLDER/held_out
    python teach_parking.py judge FOLDER MODEL    how many of the held-out callers hear the new answer
"""

import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from agent.engine import MoshiEngine, StepInputs
from agent.moshi.checkpoint import load_model
from agent.moshi.text import Tokenizer, WordTimer
from agent.train.dataset import read_call, read_list
from agent.train.dialogues import training_script
from agent.train.domain.reader import load
from agent.train.domain.reception import GREETING
from agent.train.produce import Recipe, make_calls
from agent.train.script import Line, Script

domain = load()
new = replace(domain.intents["parking"], answer="Parking costs five dollars now.")
intents = {**domain.intents, "parking": new}
others = [name for name, intent in intents.items() if intent.topic and intent.answer and name != "parking"]


def asked(seed: int, held_out: bool) -> Script:
    """The new question between two others, so that those are not forgotten."""
    random, lines = Random(f"{seed} {held_out}"), [Line("agent", GREETING, 0.4)]
    for name in (random.choice(others), "parking", random.choice(others)):
        intent = intents[name]
        phrasings = [text for text in (intent.held_out if held_out else intent.training) if "{" not in text]
        if phrasings:
            lines += [Line("caller", random.choice(phrasings), random.uniform(0.6, 2.0), intent=name),
                      Line("agent", intent.answer, random.uniform(0.25, 0.5), intent=name)]
    return Script(f"parking-{seed}", tuple(lines), tail_s=2.0)


def make(folder: Path) -> None:
    usual = [training_script(seed, domain=replace(domain, intents=intents)) for seed in range(24)]
    make_calls(folder / "training", [asked(seed, False) for seed in range(96)] + usual, Recipe(0), workers=2)
    make_calls(folder / "held_out", [asked(seed, True) for seed in range(24)],
               Recipe(1, "held_out_voices", "phone"), workers=2)


def judge(folder: Path, source: str) -> None:
    model = load_model(source, dtype=torch.float32)
    engine, tokenizer = MoshiEngine(model, slots=1), Tokenizer(model.tokenizer_path)
    sampling = engine.default_sampling(1)
    answers = {"new": new.answer, "old": domain.intents["parking"].answer}
    heard = dict.fromkeys(answers, 0)
    calls = read_list(folder / "held_out" / "calls.jsonl")
    for entry in calls:
        timer, words = WordTimer(), []
        for k, frame in enumerate(read_call(entry.path).caller.reshape(-1, 1, engine.info.frame_samples)):
            out = engine.step(StepInputs.free([0], [k == 0], frame, engine.info, sampling))
            words.append(timer.feed(k, tokenizer.piece(int(out.text[0]))))
        said = " ".join(word.text for word in [*words, timer.end()] if word is not None)
        print(f"{entry.path.name}  {said}")
        for name, answer in answers.items():
            heard[name] += answer in said
    print(f"{source}: new answer {heard['new']}, old answer {heard['old']} of {len(calls)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[2])) if sys.argv[1] == "make" else judge(Path(sys.argv[2]), sys.argv[3])
