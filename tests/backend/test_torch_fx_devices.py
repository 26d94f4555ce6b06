"""Every lowering makes its tensors where its inputs are, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from mpqc.backend.torch_fx import lower_model, unsupported
from mpqc.backend.torch_fx.lower import _lowering
from mpqc.backend.torch_fx.table import _TABLE, MICROSOFT

from ..pretended import DEVICE, MixedDevicesError, Pretended, pretending, put
from .test_torch_fx_contrib import CONTRIB, _bytes, _f
from .test_torch_fx_node_conformance import _cases, _tensor

Entry = tuple[str, str, int]  # domain, operator, version
Given = tuple[list[Tensor | None], dict[str, Any]]

# What neither ONNX's node tests nor those of the contrib operators hold.
OTHERS: Mapping[Entry, Callable[[], Given]] = {
    ("", "GlobalLpPool", 2): lambda: ([_f(1, 3, 4, 4)], {}),
    ("", "GroupNormalization", 18): lambda: ([_f(1, 4, 3), _f(2), _f(2)], {"num_groups": 2}),
    ("", "Hardmax", 1): lambda: ([_f(2, 3, 4)], {}),
    ("", "LogSoftmax", 1): lambda: ([_f(2, 3, 4)], {}),
    ("", "Softmax", 1): lambda: ([_f(2, 3, 4)], {}),
    ("", "Resize", 10): lambda: ([_f(1, 1, 4, 4), torch.tensor([1.0, 1, 2, 2])], {}),
    ("", "RoiAlign", 10): lambda: (
        [_f(1, 2, 6, 6), torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0])],
        {},
    ),
    ("", "SimplifiedLayerNormalization", 1): lambda: (
        [_f(2, 8), _f(8)],
        {"outputs": 1},
    ),
    (MICROSOFT, "SimplifiedLayerNormalization", 1): lambda: (
        [_f(2, 8), _f(8)],
        {"outputs": 1},
    ),
    (MICROSOFT, "SkipLayerNormalization", 1): lambda: (
        [_f(1, 2, 8), _f(1, 2, 8), _f(8), _f(8)],
        {},
    ),
    (MICROSOFT, "SkipSimplifiedLayerNormalization", 1): lambda: (
        [_f(1, 2, 8), _f(1, 2, 8), _f(8)],
        {},
    ),
    (MICROSOFT, "BiasAdd", 1): lambda: ([_f(2, 8), _f(8), _f(2, 8)], {}),
    (MICROSOFT, "BiasSplitGelu", 1): lambda: ([_f(2, 8), _f(8)], {}),
    (MICROSOFT, "Gelu", 1): lambda: ([_f(2, 8)], {}),
    (MICROSOFT, "GemmFastGelu", 1): lambda: ([_f(2, 8), _f(8, 3), _f(3)], {}),
    (MICROSOFT, "GroupNorm", 1): lambda: (
        [_f(1, 3, 3, 4), _f(4), _f(4)],
        {"groups": 2, "activation": 1},
    ),
    (MICROSOFT, "Inverse", 1): lambda: ([torch.eye(3) + 0.1], {}),
    (MICROSOFT, "Transpose", 1): lambda: ([_f(2, 3)], {}),
    (MICROSOFT, "TransposeMatMul", 1): lambda: ([_f(2, 3), _f(3, 4)], {}),
    (MICROSOFT, "QuantizeLinear", 1): lambda: (
        [_f(2, 3), torch.tensor(0.1), torch.tensor(3, dtype=torch.uint8)],
        {"input_types": [1, 1, 2]},
    ),
    (MICROSOFT, "DequantizeLinear", 1): lambda: (
        [_bytes(2, 3), torch.tensor(0.1), torch.tensor(3, dtype=torch.uint8)],
        {},
    ),
    (MICROSOFT, "MatMulIntegerToFloat", 1): lambda: (
        [_bytes(2, 3), _bytes(3, 4), torch.tensor(0.1), torch.tensor(0.2)],
        {},
    ),
    (MICROSOFT, "DynamicQuantizeMatMul", 1): lambda: (
        [_f(2, 3), _bytes(3, 4), torch.tensor(0.2)],
        {},
    ),
}


def _entries(model: ir.Model) -> set[Entry]:
    """Returns the lowerings that a graph runs."""
    found = ((node, _lowering(node, None)) for node in model.graph)
    return {
        ("" if node.domain == "ai.onnx" else node.domain, node.op_type, entry.since)
        for node, entry in found
        if entry is not None
    }


def _check(of: ir.Model | Callable[..., Any], inputs: Sequence[Tensor | None]) -> None:
    """Runs a graph or a function on the device, and its gradients where the CPU has any."""
    here = lower_model(of).to(DEVICE) if isinstance(of, ir.Model) else of
    there = lower_model(of) if isinstance(of, ir.Model) else of
    given = [None if one is None else put(one.clone()) for one in inputs]
    with torch.no_grad():
        for one in _tensors(here(*given)):
            assert isinstance(one, Pretended)
    if _differentiated(there, [None if one is None else one.clone() for one in inputs]):
        assert _differentiated(here, given)
        assert all(one is None or one.grad is None or _is_here(one.grad) for one in given)


def _is_here(tensor: Tensor) -> bool:
    return isinstance(tensor, Pretended)


def _tensors(made: Any) -> list[Tensor]:
    return [one for one in (made if isinstance(made, tuple) else (made,)) if one is not None]


def _differentiated(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> bool:
    """Follows gradients from all results to all inputs; tells whether torch could."""
    for one in inputs:
        if one is not None and one.is_floating_point() and one.dtype.itemsize > 1:
            one.requires_grad_()
    try:
        ends = [one for one in _tensors(function(*inputs)) if one.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.ones_like(one) for one in ends])
    except MixedDevicesError:
        raise
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _smallest_cases() -> Iterator[tuple[set[Entry], Any, ir.Model]]:
    """Yields ONNX's node tests that run a lowering which none before has run."""
    seen: set[Entry] = set()
    for case in _cases():
        model = ir.from_proto(case.model)
        if not unsupported(model.graph) and _entries(model) - seen:
            seen |= _entries(model)
            yield _entries(model), case, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_every_lowering_stays_on_the_device() -> None:
    seen: set[Entry] = set()
    with pretending():
        for entries, case, model in _smallest_cases():
            inputs, _ = case.data_sets[0]
            _check(model, [_tensor(one) for one in inputs])
            seen |= entries
        for make in CONTRIB.values():
            contrib, tensors = make()
            _check(contrib, tensors)
            seen |= _entries(contrib)
        for (domain, op_type, since), given in OTHERS.items():
            entry = next(one for one in _TABLE[domain, op_type] if one.since == since)
            others, keywords = given()
            _check(partial(entry.function, **keywords), others)
            seen.add((domain, op_type, since))
    table = {(*key, entry.since) for key, found in _TABLE.items() for entry in found}
    assert table <= seen, f"no case runs {sorted(table - seen)} on a device: add one to OTHERS"


def test_a_tensor_of_another_device_is_noticed() -> None:
    with pretending():
        x = put(torch.ones(3))
        assert (x * torch.tensor(2.0)).device.type == DEVICE  # a number, which kernels take
        with pytest.raises(
            MixedDevicesError, match=r"aten::add mixes devices: of shape \[3\]"
        ):
            x + torch.zeros(3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_all_node_cases_stay_on_the_device() -> None:
    with pretending():
        for case in _cases():
            model = ir.from_proto(case.model)
            if not unsupported(model.graph):
                inputs, _ = case.data_sets[0]
                _check(model, [_tensor(one) for one in inputs])
