"""Mimi, the codec: 24 kHz sound <-> codes at 12.5 Hz. Whole signals at once, or a frame at a time for many slots.

pcm -> convolutions (25 Hz) -> transformer -> down-sampling (12.5 Hz) -> quantiser -> codes, and back. Both ways are
causal, and both ways of computing give the same, also past the transformers' attention window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.config import MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling, ChannelwiseUpsampling, Nested, elu_after
from agent.moshi.kv import KVRing, SlotRows
from agent.moshi.layers import Rows, keep_unless_fresh
from agent.moshi.quantizer import Quantizer
from agent.moshi.transformer import Transformer

_BLOCK_FRAMES = 25  # a whole signal goes through the convolutions in blocks, so that memory stays bounded


class Mimi(nn.Module):
    """Weights under their official names. Computes in float32 always: codes are decided by small differences."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        stride = config.positions_per_frame
        down = CausalConv(config.dimension, config.dimension, 2 * stride, stride, bias=False)
        up = ChannelwiseUpsampling(config.dimension, stride)
        self._resampling = (down, up)  # in a tuple, so that each is registered under its official name alone
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.encoder_transformer = _Wrapped(config)
        self.decoder_transformer = _Wrapped(config)
        self.quantizer = Quantizer(config)
        self.downsample = Nested("conv.conv.conv", down)
        self.upsample = Nested("convtr.convtr.convtr", up)

    # Whole signals

    def encode(self, pcm: Tensor, codebooks: int) -> Tensor:
        """pcm [B, samples] -> codes [B, codebooks, frames]; the last frame is filled up with silence."""
        return self.quantizer.encode(self.latents(pcm), codebooks).transpose(1, 2)

    def latents(self, pcm: Tensor) -> Tensor:
        """pcm [B, samples] -> what is quantised [B, frames, dimension]."""
        return self.frames(self.positions(pcm))

    def positions(self, pcm: Tensor) -> Tensor:
        """pcm [B, samples] -> what becomes frames [B, positions, dimension]."""
        return self.heard(self.convolved(pcm))

    def convolved(self, pcm: Tensor) -> Tensor:
        """pcm [B, samples] -> what the encoder's last convolution sees [B, positions, channels]."""
        size = self.config.frame_samples
        pcm = F.pad(pcm, (0, -pcm.shape[1] % size))
        return self._in_blocks(self.encoder.until_last, self.encoder.carries_until_last, pcm[:, :, None],
                               _BLOCK_FRAMES * size)

    def heard(self, x: Tensor) -> Tensor:
        """What `convolved` gives -> what becomes frames [B, positions, dimension]."""
        last = self.encoder.ends[1]
        x = _look_back(last, x, iter([x.new_zeros(len(x), last.history * last.inputs)]), [])
        out: Tensor = self.encoder_transformer.transformer(x)
        return out

    def frames(self, x: Tensor) -> Tensor:
        """Positions [B, positions, dimension] -> [B, frames, dimension]."""
        down = self._resampling[0]
        before = x[:, :1].expand(-1, down.history, -1)
        return down.over_blocks(before, x) if torch.is_grad_enabled() else down(torch.cat([before, x], dim=1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, codebooks, frames] -> pcm [B, samples]."""
        return self.sound(self.quantizer.decode(codes.transpose(1, 2)))

    def sound(self, x: Tensor) -> Tensor:
        """Quantised latents [B, frames, dimension] -> pcm [B, samples]."""
        up = self._resampling[1]
        x, _ = up(x, x.new_zeros(len(x), up.overlap))
        x = self.decoder_transformer.transformer(x)
        block = _BLOCK_FRAMES * self.config.positions_per_frame
        return self._in_blocks(self.decoder, self.decoder.carries, x, block)[:, :, 0]

    @staticmethod
    def _in_blocks(convolutions: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], carries: int, x: Tensor, block: int
                   ) -> Tensor:
        carried = x.new_zeros(len(x), carries)
        outs = []
        for part in x.split(block, dim=1):
            out, carried = convolutions(part, carried)
            outs.append(out)
        return torch.cat(outs, dim=1)

    # A frame at a time

    def encoder_state(self, slots: int, device: torch.device) -> CodecState:
        down = self._resampling[0]
        return CodecState(self.encoder.carries + down.history * down.inputs,
                          self.encoder_transformer.transformer, self.config.positions_per_frame, slots, device)

    def decoder_state(self, slots: int, device: torch.device) -> CodecState:
        return CodecState(self.decoder.carries + self._resampling[1].overlap,
                          self.decoder_transformer.transformer, self.config.positions_per_frame, slots, device)

    def encode_step(self, pcm: Tensor, codebooks: int, state: CodecState, rows: Rows) -> Tensor:
        """The rows' next frame: pcm [B, frame_samples] -> codes [B, codebooks]."""
        down = self._resampling[0]
        carried = keep_unless_fresh(state.carried, rows)
        x, after = self.encoder(pcm[:, :, None], carried[:, :self.encoder.carries])
        x = self.encoder_transformer.transformer.step(x, state.ring, rows)
        # the down-sampling's past repeats the first position where a slot starts anew
        past = carried[:, self.encoder.carries:].unflatten(1, (down.history, -1))
        x = torch.cat([torch.where((rows.positions == 0)[:, None, None], x[:, :1], past), x], dim=1)
        state.carried.index_copy_(0, rows.slots, torch.cat([after, x[:, -down.history:].flatten(1)], dim=1))
        return self.quantizer.encode(down(x)[:, 0], codebooks)

    def decode_step(self, codes: Tensor, state: CodecState, rows: Rows) -> Tensor:
        """The rows' next frame: codes [B, codebooks] -> pcm [B, frame_samples]."""
        up = self._resampling[1]
        carried = keep_unless_fresh(state.carried, rows)
        x, overlap = up(self.quantizer.decode(codes)[:, None], carried[:, self.decoder.carries:])
        x = self.decoder_transformer.transformer.step(x, state.ring, rows)
        x, after = self.decoder(x, carried[:, :self.decoder.carries])
        state.carried.index_copy_(0, rows.slots, torch.cat([after, overlap], dim=1))
        pcm: Tensor = x[:, :, 0]
        return pcm


class CodecState:
    """What one direction of Mimi remembers of each slot; the last slot is scratch."""

    def __init__(self, carries: int, transformer: Transformer, positions_per_frame: int, slots: int,
                 device: torch.device) -> None:
        self.carried = torch.zeros(slots + 1, carries, device=device)  # the convolutions' past, layer after layer
        self.ring: KVRing = transformer.ring(slots, positions_per_frame, device, torch.float32)

    def rows(self) -> dict[str, SlotRows]:
        """Everything there is of a slot, as rows of these tensors' first dimension."""
        return {"carried": self.carried, **{f"ring.{name}": pages for name, pages in self.ring.rows().items()}}


class _Wrapped(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config.transformer)


class _Encoder(nn.Module):
    """Sound -> latents: a convolution, then for each ratio a residual block and a strided one, then a last one."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        channels = config.channels
        first = CausalConv(1, channels, config.kernel)
        model: list[nn.Module] = [_conv(first)]
        self._stages: list[tuple[list[_Residual], CausalConv]] = []
        for ratio in reversed(config.ratios):
            blocks = [_Residual(channels, config, i) for i in range(config.residual_layers)]
            strided = CausalConv(channels, 2 * channels, 2 * ratio, ratio)
            model += [*blocks, nn.ELU(), _conv(strided)]
            self._stages.append((blocks, strided))
            channels *= 2
        last = CausalConv(channels, config.dimension, config.last_kernel)
        model += [nn.ELU(), _conv(last)]
        self.ends = (first, last)
        self.model = nn.ModuleList(model)
        convs = [first]
        for blocks, strided in self._stages:
            convs += [*(block.convs[0] for block in blocks), strided]
        self._carries = _carries([*convs, last])
        self.carries, self.carries_until_last = sum(self._carries), sum(self._carries[:-1])

    def branches(self) -> list[CausalConv]:
        """The last convolution of each residual block."""
        return [block.convs[1] for blocks, _ in self._stages for block in blocks]

    def forward(self, x: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, 1], carried [B, carries] -> [B, T / hop, dimension] and what the next call carries."""
        *past, past_of_last = carried.split(self._carries, dim=1)
        x, after = self._until_last(x, past)
        x = _look_back(self.ends[1], x, iter([past_of_last]), after)
        return x, torch.cat(after, dim=1)

    def until_last(self, x: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """The same without the last convolution: x [B, T, 1], carried [B, carries_until_last] -> [B, T / hop, channels]
        and what the next call carries."""
        x, after = self._until_last(x, carried.split(self._carries[:-1], dim=1))
        return x, torch.cat(after, dim=1)

    def _until_last(self, x: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        past, after = iter(carried), list[Tensor]()
        x = _look_back(self.ends[0], x, past, after, active=False)
        for blocks, strided in self._stages:
            for block in blocks:
                x = block(x, past, after)
            x = _look_back(strided, x, past, after)
        return x, after


class _Decoder(nn.Module):
    """Latents -> sound: the encoder's mirror."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        channels = config.channels << len(config.ratios)
        first = CausalConv(config.dimension, channels, config.kernel)
        model: list[nn.Module] = [_conv(first)]
        self._stages: list[tuple[CausalUpsampling, list[_Residual]]] = []
        for ratio in config.ratios:
            up = CausalUpsampling(channels, channels // 2, ratio)
            channels //= 2
            blocks = [_Residual(channels, config, i) for i in range(config.residual_layers)]
            model += [nn.ELU(), Nested("convtr.convtr", up), *blocks]
            self._stages.append((up, blocks))
        last = CausalConv(channels, 1, config.last_kernel)
        model += [nn.ELU(), _conv(last)]
        self.ends = (first, last)
        self.model = nn.ModuleList(model)
        parts: list[CausalConv | CausalUpsampling] = [first]
        for up, blocks in self._stages:
            parts += [up, *(block.convs[0] for block in blocks)]
        self._carries = _carries([*parts, last])
        self.carries = sum(self._carries)

    def branches(self) -> list[CausalConv]:
        """The last convolution of each residual block."""
        return [block.convs[1] for _, blocks in self._stages for block in blocks]

    def forward(self, x: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, dimension], carried [B, carries] -> [B, T * hop, 1] and what the next call carries."""
        past = iter(carried.split(self._carries, dim=1))
        after: list[Tensor] = []
        first, last = self.ends
        x = _look_back(first, x, past, after, active=False)
        for up, blocks in self._stages:
            x, overlap = up(F.elu(x), next(past))
            after.append(overlap)
            for block in blocks:
                x = block(x, past, after)
        x = _look_back(last, x, past, after)
        return x, torch.cat(after, dim=1)


class _Residual(nn.Module):
    """x + narrow(elu(wide(elu(x)))): `wide` looks back, `narrow` is pointwise."""

    def __init__(self, channels: int, config: MimiConfig, layer: int) -> None:
        super().__init__()
        hidden = channels // config.compress
        wide = CausalConv(channels, hidden, config.residual_kernel, dilation=config.dilation_base ** layer)
        narrow = CausalConv(hidden, channels, 1)
        self.convs: tuple[CausalConv, CausalConv] = (wide, narrow)
        self.block = nn.ModuleList([nn.ELU(), _conv(wide), nn.ELU(), _conv(narrow)])

    def forward(self, x: Tensor, past: Iterator[Tensor], after: list[Tensor]) -> Tensor:
        wide, narrow = self.convs
        return x + narrow(F.elu(_look_back(wide, x, past, after)))  # type: ignore[no-any-return]


def _conv(conv: CausalConv) -> nn.Module:
    return Nested("conv.conv", conv)


def _carries(parts: Sequence[CausalConv | CausalUpsampling]) -> list[int]:
    """Floats that each part hands from one step to the next."""
    return [part.history * part.inputs if isinstance(part, CausalConv) else part.overlap for part in parts]


def _look_back(conv: CausalConv, x: Tensor, past: Iterator[Tensor], after: list[Tensor], active: bool = True
               ) -> Tensor:
    """One convolution behind its history, which is kept as the convolution sees it: after the activation."""
    history = next(past).unflatten(1, (conv.history, conv.inputs))
    if torch.is_grad_enabled():
        x = F.elu(x) if active else x
        after.append(x[:, x.shape[1] - conv.history:].flatten(1))
        return conv.over_blocks(history, x)
    x = elu_after(history, x) if active else torch.cat([history, x], dim=1)
    after.append(x[:, x.shape[1] - conv.history:].flatten(1))
    return conv(x)  # type: ignore[no-any-return]
