"""ONNX's own node tests against the lowerings."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from mpqc.backend.torch_fx import lower_model, unsupported
from mpqc.backend.torch_fx.dtypes import tensor_from_onnx

TOTAL = 1884
COVERED = 1754

# Cases that a right implementation need not reproduce.
RANDOM = {
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
    "test_training_dropout",
    "test_training_dropout_mask",
}
# The expected values carry the rounding noise of numpy's own float32 transform.
NOISY = {"test_dft_inverse", "test_dft_inverse_opset19"}

# What a few roundings of the type allow, where the test's own tolerance is tighter than that.
ROUNDING = {torch.bfloat16: 2**-6, torch.float16: 2**-9}


def _cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return load_model_tests(kind="node")


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, onnx.TensorProto):
        return tensor_from_onnx(ir.serde.deserialize_tensor(value))
    return tensor_from_onnx(ir.tensor(value))


def _array(tensor: torch.Tensor) -> np.ndarray:
    wide = tensor.dtype is torch.bfloat16 or "float8" in str(tensor.dtype)
    return (tensor.float() if wide else tensor).numpy()


def _compare(case: Any) -> None:
    model = ir.from_proto(case.model)
    module = lower_model(model)
    for inputs, expected in case.data_sets:
        with torch.no_grad():
            results = module(*map(_tensor, inputs))
        for result, value in zip(results, map(_tensor, expected), strict=True):
            assert result.shape == value.shape
            assert result.dtype == value.dtype
            if case.name in RANDOM:
                continue
            np.testing.assert_allclose(
                _array(result),
                _array(value),
                rtol=max(case.rtol, ROUNDING.get(value.dtype, 0.0)),
                atol=1e-6 if case.name in NOISY else case.atol,
            )


def _failures(cases: list[Any], counts: Counter[str]) -> Iterator[str]:
    for case in cases:
        if unsupported(ir.from_proto(case.model).graph):
            counts["unsupported"] += 1
            continue
        try:
            _compare(case)
            counts["passed"] += 1
        except Exception as error:  # every kind of failure is one line of the report
            yield f"{case.name}: {type(error).__name__}: {str(error).strip()[:200]}"


@pytest.mark.filterwarnings("ignore")
def test_node_conformance(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    cases = _cases()
    counts: Counter[str] = Counter()
    failures = list(_failures(cases, counts))
    with capsys.disabled():
        print(f" {counts['passed']} of {len(cases)} ONNX node tests", end=" ")
    assert not failures, "\n".join(failures)
    assert len(cases) < TOTAL or counts["passed"] >= COVERED
