"""The measures of distance, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from mpqc.passes.engine.numerics import divergence as d


def logits(seed: int, shape: tuple[int, ...] = (2, 5, 33)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 3


def test_kl_is_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = logits(0).reshape(-1, 33).astype(np.float64), logits(1).reshape(-1, 33)
    a = np.exp(p) / np.exp(p).sum(-1, keepdims=True)
    b = np.exp(q) / np.exp(q).sum(-1, keepdims=True)
    expected = (a * np.log(a / b)).sum(-1)
    np.testing.assert_allclose(d.kl_divergence(logits(0), logits(1)), expected, rtol=1e-5)
    monkeypatch.setattr(d, "_CHUNK", 70)  # two rows at a time
    np.testing.assert_allclose(d.kl_divergence(logits(0), logits(1)), expected, rtol=1e-5)


def test_kl_of_itself_and_of_ruled_out_tokens() -> None:
    p = logits(0)
    assert np.abs(d.kl_divergence(p, p)).max() == 0
    p[..., 3] = -np.inf
    assert np.isfinite(d.kl_divergence(p, logits(1))).all()
    assert np.abs(d.kl_divergence(p, p)).max() == 0
    assert np.isinf(d.kl_divergence(logits(1), p)).all()


def test_top1() -> None:
    p, q = logits(0), logits(0)
    q[0, 0] = -q[0, 0]
    agreed = d.top1_agreement(p, q)
    assert agreed.shape == (10,)
    assert list(np.flatnonzero(~agreed)) == [0]


def test_negative_log_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d, "_CHUNK", 70)
    uniform = np.zeros((2, 5, 33), np.float32)
    labels = np.arange(10).reshape(2, 5)
    np.testing.assert_allclose(d.negative_log_likelihood(uniform, labels), np.log(33))
    peaked = uniform.copy().reshape(-1, 33)
    peaked[np.arange(10), labels.reshape(-1)] = 50
    assert d.negative_log_likelihood(peaked, labels).max() < 1e-10


def test_relative_error_and_cosine() -> None:
    p = logits(0)
    assert d.relative_error(p, p) == 0
    assert d.relative_error(p, 1.1 * p) == pytest.approx(0.1, rel=1e-5)
    assert d.relative_error(0 * p, 0 * p) == 0
    assert d.relative_error(0 * p, p) == np.inf
    np.testing.assert_allclose(d.cosine(p, 3 * p), 1)
    np.testing.assert_allclose(d.cosine(p, -p), -1)
    assert (d.cosine(0 * p, 0 * p) == 1).all()
    assert (d.cosine(0 * p, p) == 0).all()


def test_a_scalar_output() -> None:
    assert d.relative_error(np.array(2.0), np.array(1.0)) == 0.5
