"""Rounds the units of a small model to nearest, as `quantize-weights` would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from mpqc.ir import ArrayStore, Option, QuantSpec, Unit, annotate, quantizable
from mpqc.passes.engine.pipeline.base import PassContext, Runner


def parse(text: str, weights: dict[str, np.ndarray]) -> ir.Model:
    """Reads ONNX text and gives it ``weights`` as initializers."""
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nearest(matrix: np.ndarray, option: Option) -> tuple[np.ndarray, np.ndarray]:
    """Rounds symmetrically, the extreme value of each group to the lowest code."""
    rows, columns = matrix.shape
    groups, low = option.groups(columns), -(1 << (option.bits - 1))
    padded = np.zeros((rows, groups * option.group), np.float32)
    padded[:, :columns] = matrix
    blocks = padded.reshape(rows, groups, option.group)
    at = np.abs(blocks).argmax(-1)[..., None]
    scales = (np.take_along_axis(blocks, at, -1)[..., 0] / low).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32)[..., None])
    codes = np.clip(codes, low, -low - 1).reshape(rows, -1)[:, :columns]
    return codes.astype(np.int8), scales


def values(codes: np.ndarray, scales: np.ndarray, option: Option) -> np.ndarray:
    wide = np.repeat(scales.astype(np.float32), option.group, axis=1)
    return codes * wide[:, : codes.shape[1]]


def round_unit(
    unit: Unit, options: Sequence[str], arrays: ArrayStore, *, shuffle: bool = True
) -> None:
    """Rounds a unit with its rows dealt out to ``options``, the first ones taking the rest."""
    rows = unit.shape[0]
    counts = [rows // (2 * len(options)) or 1] * len(options)
    counts[-1] += rows - sum(counts)
    mixed = shuffle and len(options) > 1
    order = np.random.default_rng(1).permutation(rows) if mixed else np.arange(rows)
    matrix = unit.matrix().copy()
    start = 0
    for index, (text, count) in enumerate(zip(options, counts, strict=True)):
        option, chosen = Option.parse(text), order[start : start + count]
        codes, scales = nearest(matrix[chosen], option)
        arrays.put(f"{unit.name}/codes/{index}", codes)
        arrays.put(f"{unit.name}/scales/{index}", scales)
        matrix[chosen] = values(codes, scales, option)
        start += count
    if len(options) > 1:
        arrays.put(f"{unit.name}/order", order.astype(np.int32))
    unit.replace(matrix)
    annotate(unit.notes, QuantSpec(unit.name, tuple(options), tuple(counts), "nearest"))


def round_model(
    model: ir.Model, options: Sequence[str], arrays: ArrayStore, *, shuffle: bool = True
) -> None:
    for unit in quantizable(model):
        round_unit(unit, options, arrays, shuffle=shuffle)


class NoRunner(Runner):
    """For passes that run nothing."""


def context(capabilities: object, scratch: Path) -> PassContext:
    return PassContext(runner=NoRunner(), capabilities=capabilities, scratch=scratch)  # type: ignore
