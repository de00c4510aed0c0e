from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from sentencepiece import SentencePieceTrainer

from agent.moshi.checkpoint import CheckpointError, Model
from agent.moshi.layers import linear
from agent.moshi.stages import bucket_of
from agent.moshi.text import EPAD, PAD, TimedWord, Tokenizer
from agent.moshi.transcribe import CallerWords, Transcriber, lag_frames, transcribe
from agent.moshi.transformer import norm

LAG = 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a table for two", "a table for four"] * 20), model_writer=model, vocab_size=30,
        model_type="bpe", unk_id=EPAD, bos_id=1, eos_id=2, pad_id=PAD, minloglevel=2)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return Tokenizer(path)


def heard(model: Model, frames: int, seed: int) -> torch.Tensor:
    """Random codes of a caller [codebooks, frames]."""
    config = model.lm.config
    return torch.randint(0, config.audio_card, (config.caller_codebooks, frames),
                         generator=torch.Generator().manual_seed(seed))


def streamed(transcriber: Transcriber, calls: dict[int, torch.Tensor], begins: dict[int, int]
             ) -> dict[int, tuple[list[int], torch.Tensor]]:
    """Step calls that begin at different times together; by slot: text tokens, pauses [frames, heads]."""
    text: dict[int, list[int]] = {slot: [] for slot in calls}
    pauses: dict[int, list[torch.Tensor]] = {slot: [] for slot in calls}
    for t in range(max(begins[slot] + call.shape[1] for slot, call in calls.items())):
        slots = [slot for slot in calls if 0 <= t - begins[slot] < calls[slot].shape[1]]
        if not slots:
            continue
        codes = torch.zeros(bucket_of(len(slots)), transcriber.codebooks + 2, dtype=torch.int64)  # two that it ignores
        for row, slot in enumerate(slots):
            codes[row, :-2] = calls[slot][:, t - begins[slot]]
        out = transcriber.step(slots, [t == begins[slot] for slot in slots], codes)
        for row, slot in enumerate(slots):
            text[slot].append(int(out.text[row]))
            pauses[slot].append(out.pauses[row])
    return {slot: (text[slot], torch.stack(pauses[slot])) for slot in calls}


def test_streaming_many_calls_is_the_parallel_forward_of_each(models):
    model, lm = models["stt"], models["stt"].lm
    frames = 2 * lm.config.temporal.context + 5
    calls = {2: heard(model, frames, 1), 0: heard(model, frames - 7, 2), 1: heard(model, 30, 3)}
    transcriber = Transcriber(lm, 3)
    for begins in ({2: 0, 0: 4, 1: 9}, {2: 3, 0: 0, 1: 0}):  # the second time in slots that were used
        for slot, (text, pauses) in streamed(transcriber, calls, begins).items():
            # a step hears its own frame, a column of the parallel forward the one before
            codes = torch.cat([torch.tensor(text)[None], calls[slot].roll(-1, dims=1)])[None]
            with torch.inference_mode():
                assert lm(codes).text_logits.argmax(-1)[0, 0].tolist() == text
                inputs = torch.cat([lm.initial_tokens(lm.device)[None, :, None], codes[:, :, :-1]], dim=2)
                x = lm.transformer(lm.embed(inputs.transpose(1, 2)))
                x = norm(x, lm.out_norm.weight(), lm.config.temporal)
                expected = torch.stack([linear(x[0], head).softmax(-1)[:, 0] for head in lm.extra_heads.all()], dim=1)
            torch.testing.assert_close(pauses, expected)


def test_a_words_frames_are_those_in_which_the_caller_says_it(tokenizer):
    words, finished = CallerWords(tokenizer, LAG), []
    pieces = tokenizer.encode("table for")
    tokens = [PAD] * 40
    first, second = 10, 21  # frames in which the words begin
    tokens[first + LAG - 1] = EPAD
    for_ = tokenizer.encode("for")
    table = pieces[:len(pieces) - len(for_)]
    tokens[first + LAG:first + LAG + len(table)] = table
    tokens[second + LAG:second + LAG + len(for_)] = for_
    for k, token in enumerate(tokens):
        word = words.feed(k, token)
        finished += [(k, word)] if word else []
    assert [word.text for _, word in finished] == ["table", "for"]
    assert [word.first_k for _, word in finished] == [first, second]
    assert finished[0][1].last_k < second
    assert all(k >= word.last_k + LAG for k, word in finished)
    assert words.end() is None


def test_text_from_before_anyone_can_have_spoken_is_no_word(tokenizer):
    words = CallerWords(tokenizer, LAG)
    piece = tokenizer.encode("two")[0]
    assert [words.feed(k, piece) for k in range(LAG)] == [None] * LAG
    assert words.end() is None
    words.feed(LAG, piece)
    word = words.end()
    assert word is not None
    assert word.first_k == 0


def test_calls_of_any_length_are_transcribed_slots_at_a_time(models, tokenizer, monkeypatch):
    """The first code is taken for the text, so that the words are known."""
    said = [PAD] * 5 + tokenizer.encode("a table for two") + [PAD] * 30
    short = [PAD] * 9 + tokenizer.encode("four") + [PAD] * 7

    def repeat(self, slots, fresh, codes):
        return type("Step", (), {"text": codes[:len(slots), 0]})()

    monkeypatch.setattr(Transcriber, "step", repeat)
    calls = [torch.tensor([text]).expand(16, -1) for text in (said, short, said)]
    transcribed = transcribe(Transcriber(models["stt"].lm, 2), tokenizer, 3, calls)
    assert [" ".join(word.text for word in words) for words in transcribed] == ["a table for two", "four",
                                                                               "a table for two"]
    assert transcribed[1] == [TimedWord("four", 6, transcribed[1][0].last_k)]


def test_the_lag_is_what_the_checkpoint_says(models):
    assert lag_frames(models["stt"]) == 5  # half a second is 6 columns, and a step hears its own frame


def of(model: Model, **config) -> Model:
    return replace(model, name="tried", config={**model.config, **config})


def test_a_model_that_transcribes_nothing_is_refused_in_one_line(models):
    with pytest.raises(CheckpointError, match="^lm: config.json has no stt_config: it is no speech-to-text model$"):
        lag_frames(models["lm"])
    with pytest.raises(CheckpointError, match="^tried: a speech-to-text model generates no sound, dep_q must be 0$"):
        lag_frames(of(models["lm"], stt_config={"audio_delay_seconds": 0.5}))


@pytest.mark.parametrize("delay", [None, "0.5", 0, -1, True, float("nan"), 1e9])
def test_a_delay_that_is_none_is_named(models, delay):
    with pytest.raises(CheckpointError, match="^tried: stt_config: audio_delay_seconds must be seconds above 0, not "):
        lag_frames(of(models["stt"], stt_config={"audio_delay_seconds": delay}))


