"""A small language model with outlier channels, as large ones have them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .rounded import noise, parse
from .swept import INNER, VOCABULARY, WIDTH

_TEXT = """<ir_version: 9, opset_import: ["" : 18]>
    g (int64[batch, n] ids) => (float[batch, n, 80] logits)
    { x = Gather(table, ids)
      h = LayerNormalization <axis = -1> (x, gain, shift)
      q = MatMul(h, query)
      qs = Reshape(q, split)
      qt = Transpose <perm = [0, 2, 1, 3]> (qs)
      k = MatMul(h, key)
      ks = Reshape(k, split)
      kt = Transpose <perm = [0, 2, 3, 1]> (ks)
      v = MatMul(h, value)
      vb = Add(v, value_bias)
      vs = Reshape(vb, split)
      vt = Transpose <perm = [0, 2, 1, 3]> (vs)
      scores = MatMul(qt, kt)
      chances = Softmax <axis = -1> (scores)
      seen = MatMul(chances, vt)
      st = Transpose <perm = [0, 2, 1, 3]> (seen)
      flat = Reshape(st, joined)
      o = MatMul(flat, output)
      y = Add(x, o)
      r = LayerNormalization <axis = -1> (y, gain2, shift2)
      a = MatMul(r, gate)
      s = Sigmoid(a)
      b = Mul(a, s)
      u = MatMul(r, up)
      c = Mul(b, u)
      d = MatMul(c, down)
      z = Add(y, d)
      e = MatMul(z, fc1)
      eb = Add(e, fc1_bias)
      f = Relu(eb)
      w = MatMul(f, fc2)
      t = Add(z, w)
      logits = MatMul(t, head) }"""


def loud(count: int, width: int, seed: int, factor: float = 60.0) -> np.ndarray:
    """Ones, of which a few are large."""
    gains = np.ones(width, np.float32)
    gains[np.random.default_rng(seed).permutation(width)[:count]] = factor
    return gains


def outlier_weights() -> dict[str, np.ndarray]:
    """Weights whose activations have a few huge columns; what reads those is small."""
    first, second = loud(3, WIDTH, 1), loud(3, WIDTH, 2)
    inner, hidden = loud(4, INNER, 3), loud(4, INNER, 4)
    return {
        "table": noise(VOCABULARY, WIDTH, seed=1),
        "gain": first,
        "shift": noise(WIDTH, seed=20) / 10 * first,
        "gain2": second,
        "shift2": noise(WIDTH, seed=21) / 10 * second,
        "query": noise(WIDTH, WIDTH, seed=2) / 12 / first[:, None],
        "key": noise(WIDTH, WIDTH, seed=3) / 12 / first[:, None],
        "value": noise(WIDTH, WIDTH, seed=4) / 8 / first[:, None],
        "value_bias": noise(WIDTH, seed=22) / 10,
        "output": noise(WIDTH, WIDTH, seed=5) / 8,
        "gate": noise(WIDTH, INNER, seed=6) / 8 / second[:, None],
        "up": noise(WIDTH, INNER, seed=7) / 8 / second[:, None] * inner,
        "down": noise(INNER, WIDTH, seed=8) / 10 / inner[:, None],
        "fc1": noise(WIDTH, INNER, seed=9) / 8 * hidden,
        "fc1_bias": noise(INNER, seed=23) / 10 * hidden,
        "fc2": noise(INNER, WIDTH, seed=10) / 10 / hidden[:, None],
        "head": noise(WIDTH, VOCABULARY, seed=11) / 4,
        "split": np.array([0, 0, 4, WIDTH // 4]),
        "joined": np.array([0, 0, WIDTH]),
    }


def outlier_model() -> ir.Model:
    """One attention, one gated and one plain feed-forward block: ids -> logits."""
    return parse(_TEXT, outlier_weights())
