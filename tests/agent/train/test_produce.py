from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent.train.dataset import DatasetError, read_call, read_list, read_made
from agent.train.produce import Recipe, make_calls
from agent.train.script import Held, Line, Script
from agent.train.voices import CALLERS

TOPICS = ("parking", "music", "wine", "beer", "cake", "coffee", "a garden", "fish", "a bar", "tea")
SCRIPTS = tuple(
    Script(
        f"call-{number}",
        (
            Line("agent", "Good evening.", 0.2, decided=False),
            Line("caller", f"is there {what} at your place", 0.6, intent=what),
            Line("agent", "Yes, there is.", 3.0, intent=what),
        ),
        held=(Held(1, -0.1, 1, 2.7),),
    )
    for number, what in enumerate(TOPICS)
)
RECIPE = Recipe(seed=11)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten calls by two processes."""
    folder = tmp_path_factory.mktemp("calls") / "training"
    make_calls(folder, SCRIPTS, RECIPE, workers=2)
    return folder


def test_every_script_becomes_a_call_with_its_words_and_sound(made: Path) -> None:
    entries = read_list(made / "calls.jsonl")
    assert [entry.path.name for entry in entries] == [f"{number:06d}.wav" for number in range(10)]
    for entry, script in zip(entries, SCRIPTS, strict=True):
        call = read_call(entry.path)
        assert entry.duration_s == call.duration_s
        said = [" ".join(word.text for word in call.words if word.speaker == side) for side in ("agent", "caller")]
        assert said == ["Good evening. Yes, there is.", script.lines[1].text]
        assert [utterance.decided for utterance in call.utterances] == [False, True, True]
        (held,) = call.held
        assert held[0] == pytest.approx(call.utterances[1].end_s - 0.1)
        for word in call.words:
            track = call.agent if word.speaker == "agent" else call.caller
            assert track[round(word.begin_s * 24000):round(word.end_s * 24000)].any()
        assert call.phonemes


def test_callers_and_lines_differ_from_call_to_call(made: Path) -> None:
    about = [read_made(made / f"{number:06d}.wav") for number in range(10)]
    voices = {one["caller"]["voice"]["name"] for one in about}
    assert len(voices) > 4
    assert voices <= {voice.name for voice in CALLERS["training"]}
    assert len({one["condition"]["gain_db"] for one in about}) == 10


def test_one_process_makes_the_same_calls_as_two(made: Path, tmp_path: Path) -> None:
    make_calls(tmp_path, SCRIPTS[:3], RECIPE, workers=1)
    again, whole = files(tmp_path), files(made)
    del again["calls.jsonl"]
    assert len(again) == 6
    assert all(whole[name] == content for name, content in again.items())


def test_a_made_call_is_kept_and_a_missing_one_made_again(tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    make_calls(tmp_path, SCRIPTS[:2], RECIPE)
    before = files(tmp_path)
    kept = (tmp_path / "000000.wav").stat().st_mtime_ns
    (tmp_path / "000001.json").unlink()
    make_calls(tmp_path, SCRIPTS[:2], RECIPE, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(1, 2), (2, 2)]
    assert files(tmp_path) == before
    assert (tmp_path / "000000.wav").stat().st_mtime_ns == kept


PRODUCER = """
import sys
from pathlib import Path
from agent.train.produce import Recipe, make_calls
from agent.train.script import Line, Script
scripts = [Script(str(n), (Line("caller", "is there parking", 1.0),)) for n in range(2000)]
make_calls(Path(sys.argv[1]), scripts, Recipe(1), workers=2, progress=lambda done, total: print(done, flush=True))
"""


def test_a_killed_production_leaves_no_process_and_no_half_call(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PRODUCER, tmp_path], stdout=subprocess.PIPE) as producer:
        assert producer.stdout is not None
        assert [producer.stdout.readline() for _ in range(2)] == [b"0\n", b"8\n"]
        children = psutil.Process(producer.pid).children(recursive=True)
        assert len(children) >= 2
        producer.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    for path in tmp_path.glob("*.json"):
        assert read_call(path.with_suffix(".wav")).words


def test_a_folder_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    make_calls(tmp_path, SCRIPTS[:1], RECIPE)
    with pytest.raises(DatasetError, match=r"000000.wav: was made from another script, seed or recipe"):
        make_calls(tmp_path, SCRIPTS[:1], Recipe(seed=12))


def test_another_seed_makes_another_call(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_calls(tmp_path / str(seed), SCRIPTS[:1], Recipe(seed, split="held_out_voices", band="phone"))
    one, other = (read_made(tmp_path / str(seed) / "000000.wav") for seed in (1, 2))
    assert one["caller"]["manner"] != other["caller"]["manner"]
    assert one["condition"] != other["condition"]
    for about in (one, other):
        assert about["condition"]["band"] == "phone"
        assert about["caller"]["voice"]["name"] in {voice.name for voice in CALLERS["held_out_voices"]}


def test_a_script_that_makes_no_call_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    broken = Script("call-broken", (Line("caller", "...", 0.0),))
    with pytest.raises(DatasetError, match=r"000001.wav, script call-broken: '...' makes no sound"):
        make_calls(tmp_path, [SCRIPTS[0], broken], RECIPE)
    assert set(files(tmp_path)) == {"000000.wav", "000000.json"}
    assert json.loads((tmp_path / "000000.json").read_text())["tandem"]["script"] == "call-0"
