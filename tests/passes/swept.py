"""Tiny models, calibrated by the real passes with the real runner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from mpqc.backend.onnxruntime import load
from mpqc.backend.runner import Runner
from mpqc.ir import Calibration, Feeds, Kernel
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.statistics.squares import DEVIATIONS, read_square

from .rounded import noise, parse

TABLE = replace(
    load("ort-cpu"),
    target="test",
    kernels=tuple(Kernel(bits, (32, 64), 1, 16, 0, 0.2) for bits in (2, 4, 8)),
    row_tile=8,
)
CALIBRATE = "normalize,partition-blocks,calibrate"
VOCABULARY, WIDTH, INNER = 80, 64, 128

_LANGUAGE = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[batch, n] ids) => (float[batch, n, 80] logits)
    { x = Gather(table, ids)
      a = MatMul(x, up)
      b = Relu(a)
      c = MatMul(b, down)
      y = Add(x, c)
      d = MatMul(y, up2)
      e = Relu(d)
      f = MatMul(e, down2)
      z = Add(y, f)
      logits = MatMul(z, head) }"""

VECTOR = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x) => (float[n, 80] y)
    { a = MatMul(x, first)
      b = Tanh(a)
      c = MatMul(b, second)
      y = Add(c, bias) }"""


def language_weights() -> dict[str, np.ndarray]:
    return {
        "table": noise(VOCABULARY, WIDTH, seed=1),
        "up": noise(WIDTH, INNER, seed=2) / 8,
        "down": noise(INNER, WIDTH, seed=3) / 10,
        "up2": noise(WIDTH, INNER, seed=4) / 8,
        "down2": noise(INNER, WIDTH, seed=5) / 10,
        "head": noise(WIDTH, VOCABULARY, seed=6) / 5,
    }


def language() -> ir.Model:
    """Two residual blocks between a table and a head: ids -> logits."""
    return parse(_LANGUAGE, language_weights())


def vector_weights() -> dict[str, np.ndarray]:
    return {
        "first": noise(64, 96, seed=1) / 8,
        "second": noise(96, 80, seed=2) / 10,
        "bias": noise(80, seed=3),
    }


def vector() -> ir.Model:
    """Two products and a bias: x -> y."""
    return parse(VECTOR, vector_weights())


def sentences(count: int = 6, length: int = 24, seed: int = 0) -> Calibration:
    """Token ids; only the first half of the vocabulary occurs."""
    rng = np.random.default_rng(seed)
    feeds: list[Feeds] = [
        {"ids": rng.integers(0, VOCABULARY // 2, (1, length))} for _ in range(count)
    ]
    return Calibration(feeds, "noise", f"sentences-{count}-{length}-{seed}", "ids")


def vectors(
    count: int = 6, length: int = 40, seed: int = 0, dtype: type = np.float32
) -> Calibration:
    rng = np.random.default_rng(seed)
    feeds: list[Feeds] = [
        {"x": rng.standard_normal((length, 64)).astype(dtype)} for _ in range(count)
    ]
    key = f"vectors-{count}-{length}-{seed}-{dtype.__name__}"
    return Calibration(feeds, "noise", key)


def context(folder: Path, calibration: Calibration, *, seed: int = 0) -> PassContext:
    return PassContext(
        runner=Runner(threads=1),
        capabilities=TABLE,
        scratch=folder / "scratch",
        calibration=calibration,
        cache=folder / "cache",
        seed=seed,
    )


def moments(work: PassContext) -> dict[str, np.ndarray]:
    """Returns what calibration has left in the store, square arrays as matrices."""
    found = {}
    for name in work.arrays.names():
        if f"{name}{DEVIATIONS}" in work.arrays:
            found[name] = read_square(work.arrays, name)
        elif not name.endswith(DEVIATIONS):
            found[name] = np.array(work.arrays.get(name))
    return found


def run(passes: str, model: ir.Model, work: PassContext) -> ir.Model:
    """Runs ``passes`` on ``model`` in place."""
    Pipeline.parse(passes).run(model, work)
    return model


def moment_tensors(work: PassContext) -> dict[str, torch.Tensor]:
    """Returns the same as ``moments``, as tensors."""
    return {name: torch.from_numpy(array) for name, array in moments(work).items()}


def calibrated(
    folder: Path, model: ir.Model, samples: Calibration, *, seed: int = 0, **options: str
) -> PassContext:
    work = context(folder, samples, seed=seed)
    inner = ", ".join(f"{key}={value}" for key, value in options.items())
    run(f"{CALIBRATE}{{{inner}}}" if inner else CALIBRATE, model, work)
    return work
