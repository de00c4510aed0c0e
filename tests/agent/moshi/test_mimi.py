"""The codec: a frame at a time is what the whole is."""

from __future__ import annotations

import pytest
import torch

from agent.moshi.config import FIRST_MIMI, MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling
from agent.moshi.layers import Rows
from agent.moshi.mimi import Mimi

CPU = torch.device("cpu")
FRAME = 1920


def a_signal(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.rand(1, frames, 1, generator=generator)
    return (loudness * torch.randn(1, frames, FRAME, generator=generator) * 0.3).reshape(1, -1)


def streamed(mimi: Mimi, pcm: torch.Tensor, codebooks: int) -> tuple[torch.Tensor, torch.Tensor]:
    encoder, decoder = mimi.encoder_state(1, CPU), mimi.decoder_state(1, CPU)
    codes, decoded = [], []
    with torch.inference_mode():
        for k, frame in enumerate(pcm.split(FRAME, dim=1)):
            rows = Rows.of([0], [k], CPU)
            codes.append(mimi.encode_step(frame, codebooks, encoder, rows))
            decoded.append(mimi.decode_step(codes[-1], decoder, rows))
    return torch.stack(codes, dim=2), torch.cat(decoded, dim=1)


def test_streaming_is_the_whole_signal_past_the_attention_window(models):
    mimi = models["lm"].mimi
    frames = 3 * mimi.config.transformer.context // 2  # the window is half as many frames
    pcm = a_signal(frames)
    codes, decoded = streamed(mimi, pcm, 8)
    with torch.inference_mode():
        whole = mimi.encode(pcm, 8)
        sound = mimi.decode(whole)
    assert torch.equal(codes, whole)
    assert (decoded - sound).abs().max() < 1e-4 * sound.std()


def test_fewer_codebooks_are_the_first_of_more(models):
    mimi, pcm = models["wide"].mimi, a_signal(6)
    with torch.inference_mode():
        every = mimi.encode(pcm, 16)
        for count in (1, 2, 8, 15):
            assert torch.equal(mimi.encode(pcm, count), every[:, :count])
            assert mimi.decode(every[:, :count]).shape == pcm.shape


def test_a_signal_that_ends_within_a_frame_is_filled_up_with_silence(models):
    mimi, pcm = models["lm"].mimi, a_signal(4)
    cut = pcm[:, :3 * FRAME + 700]
    filled = torch.cat([cut, torch.zeros(1, FRAME - 700)], dim=1)
    with torch.inference_mode():
        assert torch.equal(mimi.encode(cut, 8), mimi.encode(filled, 8))


def test_slots_that_start_at_different_times_hear_only_themselves(models):
    mimi = models["lm"].mimi
    early, late = a_signal(10, seed=1), a_signal(6, seed=2)
    encoder = mimi.encoder_state(2, CPU)
    together: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    with torch.inference_mode():
        for k in range(10):
            slots = [0] if k < 4 else [1, 0]
            frames = {0: early[:, k * FRAME:][:, :FRAME], 1: late[:, max(0, k - 4) * FRAME:][:, :FRAME]}
            positions = {0: k, 1: k - 4}
            codes = mimi.encode_step(torch.cat([frames[slot] for slot in slots]), 8, encoder,
                                     Rows.of(slots, [positions[slot] for slot in slots], CPU))
            for slot, row in zip(slots, codes, strict=True):
                together[slot].append(row)
        assert torch.equal(torch.stack(together[0], dim=1), mimi.encode(early, 8)[0])
        assert torch.equal(torch.stack(together[1], dim=1), mimi.encode(late, 8)[0])


def test_another_shape_of_codec_streams_as_well():
    seanet = FIRST_MIMI["seanet"] | {"n_filters": 6, "dimension": 24, "n_residual_layers": 2, "ratios": [4, 6, 5, 4]}
    transformer = FIRST_MIMI["transformer"] | {
        "d_model": 24, "num_heads": 2, "num_layers": 1, "context": 9, "dim_feedforward": 50,
        "input_dimension": 24, "output_dimensions": [24]}
    quantizer = {"dimension": 8, "n_q": 4, "bins": 30, "input_dimension": 24, "output_dimension": 24}
    mimi = Mimi(MimiConfig.from_dict(FIRST_MIMI | {
        "seanet": seanet, "transformer": transformer, "quantizer": quantizer}))
    assert mimi.config.positions_per_frame == 4
    generator = torch.Generator().manual_seed(0)
    for name, tensor in mimi.state_dict().items():
        if name.endswith("cluster_usage"):
            tensor.fill_(1)
        elif tensor.dim() > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.uniform_(0.5, 1, generator=generator)
    pcm = a_signal(12)
    codes, decoded = streamed(mimi, pcm, 4)
    with torch.inference_mode():
        assert torch.equal(codes, mimi.encode(pcm, 4))
        sound = mimi.decode(codes)
    assert (decoded - sound).abs().max() < 1e-4 * sound.std()


def test_with_gradients_a_whole_signal_is_the_same_sound(models):
    mimi = models["lm"].mimi
    pcm = a_signal(30)  # more than one block of the convolutions
    with torch.inference_mode():
        latents = mimi.latents(pcm)
        sound = mimi.sound(latents)
    with torch.enable_grad():
        assert (mimi.latents(pcm) - latents).abs().max() < 1e-5 * latents.abs().max()
        assert (mimi.sound(latents.clone()) - sound).abs().max() < 1e-5 * sound.abs().max()


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride", "dilation"), [
    (1, 5, 7, 1, 1), (12, 6, 3, 1, 1), (12, 6, 3, 1, 2), (8, 16, 8, 4, 1), (5, 3, 16, 8, 1), (96, 4, 3, 1, 1),
    (130, 4, 7, 1, 1), (4, 4, 1, 1, 1)])
def test_a_convolution_over_blocks_is_the_convolution_and_has_its_gradient(inputs, outputs, kernel, stride, dilation):
    generator = torch.Generator().manual_seed(0)
    conv = CausalConv(inputs, outputs, kernel, stride, dilation)
    for weight in (conv.weight, conv.bias):
        weight.data.normal_(generator=generator)
    conv.requires_grad_(True)
    for positions in (stride, 5 * stride, 37 * stride):
        x = torch.randn(2, conv.history + positions, inputs, generator=generator, requires_grad=True)
        wanted = conv(x)
        got = conv.over_blocks(x[:, :conv.history], x[:, conv.history:])
        assert got.shape == wanted.shape
        assert torch.allclose(got, wanted, atol=1e-4)
        weight = torch.randn(wanted.shape, generator=generator)
        for ours, theirs in zip(torch.autograd.grad((got * weight).sum(), (x, conv.weight, conv.bias)),
                                torch.autograd.grad((wanted * weight).sum(), (x, conv.weight, conv.bias)), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-3)


def test_an_upsampling_that_learns_is_the_same_across_calls():
    generator = torch.Generator().manual_seed(0)
    up = CausalUpsampling(6, 4, 5)
    for weight in (up.weight, up.bias):
        weight.data.normal_(generator=generator)
    x = torch.randn(2, 9, 6, generator=generator)
    with torch.inference_mode():
        wanted, after = up(x, torch.zeros(2, up.overlap))
    first, between = up(x[:, :4], torch.zeros(2, up.overlap))
    second, last = up(x[:, 4:], between)
    assert torch.allclose(torch.cat([first, second], dim=1), wanted, atol=1e-5)
    assert torch.allclose(last, after, atol=1e-5)
