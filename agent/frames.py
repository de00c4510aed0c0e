"""A step's inputs and outputs, between the host's arrays and the buffers that a step reads and writes."""

from __future__ import annotations

import numpy as np

from agent.moshi import frame
from agent.moshi.frame import FrameBuffers, Known
from agent.step import Bools, Ints, ModelInfo, StepInputs, StepOutputs


def write(buffers: FrameBuffers, inputs: StepInputs, known: Known, given_codes: Ints | None) -> None:
    """Rows past the inputs' are padding: greedy, free, on the scratch slot."""
    count, sampling = len(inputs.slots), inputs.sampling
    whole, real, pcm = (host.numpy() for host in (buffers.host_whole, buffers.host_real, buffers.host_pcm))
    for slots, positions, pairs in ((frame.SLOT, frame.GENERATED, known.generated),
                                    (None, frame.ENCODED, known.encoded),
                                    (frame.DECODING_SLOT, frame.DECODED, known.decoded),
                                    (None, frame.TRANSCRIBED, known.transcribed)):
        if pairs is not None:
            both = np.array(pairs, np.int64).T
            whole[positions] = both[1]
            if slots is not None:
                whole[slots] = both[0]
    codes, forced = np.split(whole[frame.CODES:], [len(whole) - frame.CODES - inputs.forced_audio.shape[1]])
    codes[:] = 0
    if given_codes is not None:
        codes[:, :count] = given_codes.T
    forced[:, :count], forced[:, count:] = inputs.forced_audio.T, 0
    for column, integers in ((frame.TEXT_MODE, inputs.text_mode), (frame.FORCED_TEXT, inputs.forced_text),
                             (frame.SEED, sampling.seed), (frame.TEXT_TOP_K, sampling.text_top_k),
                             (frame.AUDIO_TOP_K, sampling.audio_top_k)):
        whole[column, :count], whole[column, count:] = integers, 0
    for column, reals, padding in ((frame.TEXT_TEMPERATURE, sampling.text_temperature, 0),
                                   (frame.AUDIO_TEMPERATURE, sampling.audio_temperature, 0),
                                   (frame.PAD_BIAS, sampling.pad_bias, 0),
                                   (frame.REPETITION_PENALTY, sampling.repetition_penalty, 1)):
        real[column, :count], real[column, count:] = reals, padding
    pcm[:count], pcm[count:] = inputs.pcm, 0


def read(buffers: FrameBuffers, speaks: Bools, info: ModelInfo) -> StepOutputs:
    """Of the first rows; copies, since the next step overwrites the buffers. `speaks` [B]: who has a frame."""
    count = len(speaks)
    whole, real = (host[:count].numpy().copy() for host in (buffers.host_out_whole, buffers.host_out_real))
    pcm = np.zeros((count, info.frame_samples), np.float32)
    pcm[speaks] = buffers.host_out_pcm[:count].numpy()[speaks]
    agent, caller = np.split(whole[:, frame.OUT_CODES:], [info.generated_codebooks], axis=1)
    return StepOutputs(
        pcm=pcm, text=whole[:, frame.TEXT], sampled_text=whole[:, frame.SAMPLED_TEXT], agent_codes=agent,
        caller_codes=caller, caller_text=whole[:, frame.CALLER_TEXT],
        pauses=real[:, frame.PAUSES:].reshape(count, info.pause_heads, info.pause_classes),
        text_entropy=real[:, frame.TEXT_ENTROPY], audio_entropy=real[:, frame.AUDIO_ENTROPY],
        codebook_spread=real[:, frame.CODEBOOK_SPREAD])
