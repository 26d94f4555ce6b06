"""Fourier transforms, windows and the mel scale."""

from __future__ import annotations

from collections.abc import Callable
from math import log10, pi

import torch
from torch import Tensor

from ..dtypes import torch_dtype
from ..table import lowering
from .arguments import Number, number


@lowering("", "DFT", since=20)
def discrete_fourier_transform(
    x: Tensor,
    dft_length: Number | None = None,
    axis: Number = -2,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The Fourier transform along ``axis``; the last axis holds real and imaginary parts."""
    along = int(number(axis)) % x.dim()
    length = None if dft_length is None else int(number(dft_length))
    signal = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else x[..., 0] * 0)
    if inverse and onesided:
        whole: Tensor = torch.fft.irfft(signal, length, dim=along)
        return whole.unsqueeze(-1).to(x.dtype)
    transform = torch.fft.ifft if inverse else torch.fft.fft
    spectrum = transform(signal, length, dim=along)
    if onesided:
        spectrum = spectrum.narrow(along, 0, spectrum.shape[along] // 2 + 1)
    parts: Tensor = torch.view_as_real(spectrum)
    return parts.to(x.dtype)


@lowering("", "DFT", since=17)
def discrete_fourier_transform_17(
    x: Tensor,
    dft_length: Number | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The Fourier transform with its axis in an attribute."""
    return discrete_fourier_transform(x, dft_length, axis, inverse=inverse, onesided=onesided)


@lowering("", "STFT")
def short_time_fourier_transform(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """The Fourier transform of each window of ``signal``."""
    length = signal.shape[1] if window is None else window.shape[0]
    length = length if frame_length is None else int(number(frame_length))
    frames = signal.unfold(1, length, int(number(frame_step))).movedim(-1, 2)
    if window is not None:
        frames = frames * window[:, None]
    return discrete_fourier_transform(frames, onesided=onesided)


def _window(
    size: Tensor, periodic: int, output_datatype: int, shape: Callable[[Tensor], Tensor]
) -> Tensor:
    count = int(number(size))
    steps = torch.arange(count, dtype=torch.float64, device=size.device)
    angle = 2 * pi * steps / (count if periodic else count - 1)
    return shape(angle).to(torch_dtype(output_datatype))


@lowering("", "HannWindow")
def hann_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """``(1 - cos t) / 2``."""
    return _window(size, periodic, output_datatype, lambda t: 0.5 - 0.5 * t.cos())


@lowering("", "HammingWindow")
def hamming_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """``25/46 - 21/46 cos t``."""
    return _window(size, periodic, output_datatype, lambda t: 25 / 46 - 21 / 46 * t.cos())


@lowering("", "BlackmanWindow")
def blackman_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """``0.42 - 0.5 cos t + 0.08 cos 2t``."""

    def shape(angle: Tensor) -> Tensor:
        return 0.42 - 0.5 * angle.cos() + 0.08 * (2 * angle).cos()

    return _window(size, periodic, output_datatype, shape)


@lowering("", "MelWeightMatrix")
def mel_weight_matrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """Triangles over spectrum bins (rows), evenly spaced on the mel scale (columns)."""
    bins, points = int(number(num_mel_bins)), int(number(dft_length))
    low, high = (
        2595 * log10(1 + number(edge) / 700) for edge in (lower_edge_hertz, upper_edge_hertz)
    )
    mel = low + torch.arange(bins + 2, dtype=torch.float64) * (high - low) / (bins + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    corners = torch.floor((points + 1) * hertz / number(sample_rate))
    left, center, right = corners[:-2], corners[1:-1], corners[2:]
    row = torch.arange(points // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(center > left, (row - left) / (center - left), (row == center) * 1.0)
    rising = torch.where((row >= left) & (row <= center), rising, 0.0)
    slope = (right - row) / (right - center)
    falling = torch.where((row > center) & (row < right), slope, 0.0)
    weights = rising + falling
    return weights.to(num_mel_bins.device, torch_dtype(output_datatype))
