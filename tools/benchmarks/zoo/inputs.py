"""Inputs that look like what models read: pictures, sound and text, made without any data.

White noise is what no model was trained on. A picture here has edges, shapes and shades, sound
has harmonics that come and go, and text is the prose that ships with mpqc.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....frontend import default_text
from ....frontend.model_inputs import ModelInput
from ....ir import Feeds
from .models import Entry

_LENGTH = 32  # of an axis that varies
_PICTURE_RANK = 4
_CHANNELS = (1, 3)


def natural_feeds(
    inputs: Sequence[ModelInput], entry: Entry, count: int, seed: int
) -> list[Feeds]:
    """Returns ``count`` samples for a model.

    Args:
        inputs: What the model reads.
        entry: Lengths of named axes, and what its masks mark.
        count: Number of samples.
        seed: Other seeds give other samples.
    """
    rng = np.random.default_rng(seed)
    return [{one.name: _natural(one, entry, rng) for one in inputs} for _ in range(count)]


def _natural(one: ModelInput, entry: Entry, rng: np.random.Generator) -> np.ndarray:
    dims = tuple(
        dim if isinstance(dim, int) else entry.sizes.get(dim, _LENGTH if at else 1)
        for at, dim in enumerate(one.dims)
    )
    if one.dtype.kind == "b" or one.role == "mask":
        return np.full(dims, not entry.masks_padding, one.dtype)
    if one.role == "positions":
        return np.broadcast_to(np.arange(dims[-1]), dims).astype(one.dtype)
    if one.role == "lengths":
        return np.full(dims, max(entry.sizes.values(), default=_LENGTH), one.dtype)
    if one.role == "segments":
        return np.zeros(dims, one.dtype)
    if one.dtype.kind in "iu" or one.vocabulary:
        return _text(dims, max(one.vocabulary, 2), rng).astype(one.dtype)
    if len(dims) == _PICTURE_RANK and dims[1] in _CHANNELS:
        return _pictures(dims, rng).astype(one.dtype)
    if len(dims) == _PICTURE_RANK and dims[3] in _CHANNELS:
        turned = (dims[0], dims[3], dims[1], dims[2])
        return np.moveaxis(_pictures(turned, rng), 1, 3).astype(one.dtype)
    return _sound(dims, rng).astype(one.dtype)


def _text(dims: tuple[int, ...], vocabulary: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the bytes of a piece of prose, folded into the vocabulary."""
    prose = np.frombuffer(default_text.own_prose().encode(), np.uint8)
    size = int(np.prod(dims))
    start = int(rng.integers(0, len(prose) - size)) if size < len(prose) else 0
    return np.resize(prose[start : start + size], dims).astype(np.int64) % vocabulary


def _pictures(dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns shapes before a background that shades off, between 0 and 1."""
    batch, channels, height, width = dims
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    pictures = np.empty(dims, np.float32)
    for picture in pictures.reshape(batch, channels, height, width):
        tilt, level = (
            rng.uniform(-1, 1, (2, channels, 1, 1)),
            rng.uniform(0, 1, (channels, 1, 1)),
        )
        shade = tilt[0] * down / height + tilt[1] * across / width
        picture[:] = np.clip(level + 0.5 * shade, 0, 1)
        for _ in range(int(rng.integers(3, 12))):
            inside = _shape(down / height, across / width, rng)
            picture[:, inside] = rng.uniform(0, 1, (channels, 1))
        picture += 0.02 * rng.standard_normal(picture.shape)
    return pictures


def _shape(down: np.ndarray, across: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the inside of an ellipse, a bar or a ring."""
    y, x, tall, wide = *rng.uniform(0, 1, 2), *rng.uniform(0.03, 0.3, 2)
    distance = ((down - y) / tall) ** 2 + ((across - x) / wide) ** 2
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(distance < 1)
    if kind == 1:
        return np.asarray((np.abs(down - y) < tall) & (np.abs(across - x) < wide / 3))
    return np.asarray((distance < 1) & (distance > 0.6))


def _sound(dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns sums of tones whose loudness changes, along the last axis."""
    time = np.arange(dims[-1], dtype=np.float32)
    sound = np.zeros(dims, np.float32)
    for tone in sound.reshape(-1, dims[-1]):
        for _ in range(4):
            pitch, phase = rng.uniform(0.01, 0.6), rng.uniform(0, 6.3)
            swell = 0.5 + 0.5 * np.sin(time * rng.uniform(0.001, 0.05) + phase)
            tone += rng.uniform(0.1, 0.5) * swell * np.sin(pitch * time + phase)
    return sound
