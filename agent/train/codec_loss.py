"""How far decoded sound is from the original, as ears would say: spectra at three resolutions, and the wave itself."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE = 24_000
RESOLUTIONS = ((2048, 512, 96), (1024, 256, 80), (512, 128, 64))  # window, hop, mel bands
SHOWN = 1024  # whose mel distance is logged


class SpectralLoss(nn.Module):
    """The sum over the resolutions of |log mel| + 4 |linear|, and of half |log linear| at the first, as means."""

    def __init__(self) -> None:
        super().__init__()
        for window, _, bands in RESOLUTIONS:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"mel_{window}", mel_bands(window, bands), persistent=False)

    def forward(self, decoded: Tensor, original: Tensor, weights: Tensor) -> tuple[Tensor, float]:
        """Both [B, samples], weights [B] -> the loss, and the unweighted log-mel distance at SHOWN."""
        total = torch.zeros(len(decoded), device=decoded.device)
        shown = 0.0
        for window, hop, _ in RESOLUTIONS:
            bands: Tensor = getattr(self, f"mel_{window}")
            x, y = self._magnitudes(original, window, hop), self._magnitudes(decoded, window, hop)
            scale = math.sqrt(window) / 2
            mel = ((x @ bands / scale + 1e-3).log() - (y @ bands / scale + 1e-3).log()).abs().mean((1, 2))
            total = total + mel + 4 * (x - y).abs().mean((1, 2)) / scale
            if window == RESOLUTIONS[0][0]:
                total = total + 0.5 * ((x / scale + 1e-2).log() - (y / scale + 1e-2).log()).abs().mean((1, 2))
            if window == SHOWN:
                shown = float(mel.detach().mean())
        return (total * weights).mean(), shown

    def _magnitudes(self, pcm: Tensor, window: int, hop: int) -> Tensor:
        """[B, frames, window / 2 + 1]"""
        spectrum = torch.stft(pcm, window, hop, window=getattr(self, f"window_{window}"), return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt().transpose(1, 2)


def mel_bands(window: int, bands: int) -> Tensor:
    """Triangles on O'Shaughnessy's mel scale, each of sum 1: [window / 2 + 1, bands]."""
    hz = np.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    mels = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), bands + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    low, middle, high = (corners[None, at:at + bands] for at in range(3))
    rising, falling = (hz[:, None] - low) / (middle - low), (high - hz[:, None]) / (high - middle)
    triangles = np.clip(np.minimum(rising, falling), 0, None)
    # a narrow band may lie between two bins: it takes the nearer one
    empty = triangles.sum(0) < 1e-3
    triangles[np.abs(hz[:, None] - middle).argmin(0)[empty], np.flatnonzero(empty)] = 1
    return torch.from_numpy((triangles / triangles.sum(0, keepdims=True)).astype(np.float32))
