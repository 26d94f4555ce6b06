"""The contrib operators of ONNX Runtime, one by one, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from mpqc.backend.torch_fx import lower_model


def _runtime(model: ir.Model, inputs: list[Tensor]) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in model.graph.inputs]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def _microsoft(
    op_type: str, inputs: Sequence[Tensor | None], outputs: int = 1, **attributes: Any
) -> tuple[ir.Model, list[Tensor]]:
    given = [tensor for tensor in inputs if tensor is not None]
    names = [None if tensor is None else f"i{i}" for i, tensor in enumerate(inputs)]
    node = onnx.helper.make_node(
        op_type,
        [name or "" for name in names],
        [f"o{i}" for i in range(outputs)],
        domain="com.microsoft",
        **attributes,
    )
    infos = [
        onnx.helper.make_tensor_value_info(
            name or "",
            onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype),
            tensor.shape,
        )
        for name, tensor in zip(names, inputs, strict=True)
        if tensor is not None
    ]
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "contrib", infos, results)
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    return ir.from_proto(proto), given


def _f(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _bytes(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _i(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _gqa(
    lengths: list[int],
    total: int,
    past: int,
    extra: tuple[Tensor | None, ...] = (),
    **more: Any,
) -> tuple[ir.Model, list[Tensor]]:
    batch, steps = len(lengths), total - past
    return _microsoft(
        "GroupQueryAttention",
        [
            _f(batch, steps, 128),
            None,
            None,
            _f(batch, 2, past, 16),
            _f(batch, 2, past, 16) + 1,
            _i(*lengths) - 1,
            torch.tensor(total, dtype=torch.int32),
            _f(32, 8),
            _f(32, 8) + 1,
            *extra,
        ],
        3,
        num_heads=4,
        kv_num_heads=2,
        **({"do_rotary": 1} | more),
    )


def _nbits(bits: int, block: int, zero_points: bool) -> tuple[ir.Model, list[Tensor]]:
    blocks = -(-72 // block)
    zeros = _bytes(6, -(-blocks * bits // 8)) if zero_points else None
    inputs = [
        _f(3, 72),
        _bytes(6, blocks, block * bits // 8),
        _f(6, blocks),
        zeros,
        None,
        _f(6),
    ]
    return _microsoft("MatMulNBits", inputs, K=72, N=6, bits=bits, block_size=block)


def _gathered(bits: int, zero_points: bool) -> tuple[ir.Model, list[Tensor]]:
    indices = torch.tensor([[3, 1, 4], [1, 5, 9]])
    zeros = _bytes(10, bits // 2) if zero_points else None
    return _microsoft(
        "GatherBlockQuantized",
        [_bytes(10, 8 * bits), indices, _f(10, 4), zeros],
        bits=bits,
        block_size=16,
        gather_axis=0,
        quantize_axis=1,
    )


def _moe(inner: int, biases: bool = False, **more: Any) -> tuple[ir.Model, list[Tensor]]:
    inputs = [
        _f(2, 5, 8),
        3 * _f(10, 4),
        _f(4, inner, 8),
        _f(4, inner) if biases else None,
        _f(4, 8, 6),
        _f(4, 8) if biases else None,
    ]
    return _microsoft("MoE", inputs, k=2, **more)


_SWIGLU: dict[str, Any] = {"activation_type": "swiglu", "swiglu_fusion": 1}

CONTRIB: dict[str, Callable[[], tuple[ir.Model, list[Tensor]]]] = {
    "gqa prompt": lambda: _gqa([6, 6], 6, 0),
    "gqa step": lambda: _gqa([8, 8], 8, 7),
    "gqa several steps": lambda: _gqa([10], 10, 7),
    "gqa window": lambda: _gqa([9], 9, 0, local_window_size=3),
    "gqa window with cache": lambda: _gqa([10], 10, 9, local_window_size=3),
    "gqa softcap": lambda: _gqa([5], 5, 0, softcap=5.0, scale=0.3, do_rotary=0),
    "gqa interleaved": lambda: _gqa([5], 5, 0, rotary_interleaved=1),
    "gqa smooth": lambda: _gqa([5], 5, 0, smooth_softmax=1),
    "gqa bias": lambda: _gqa([5], 5, 0, (None, _f(1, 4, 5, 5))),
    "gqa positions": lambda: _gqa([5], 5, 0, (torch.arange(3, 8)[None], None)),
    "gqa sink": lambda: _gqa([5], 5, 0, (None, None, _f(4))),
    "mha": lambda: _microsoft(
        "MultiHeadAttention", [_f(2, 5, 32), _f(2, 7, 32), _f(2, 7, 32), _f(96)], num_heads=4
    ),
    "mha lengths": lambda: _microsoft(
        "MultiHeadAttention",
        [_f(2, 5, 32), _f(2, 7, 32), _f(2, 7, 32), None, _i(7, 4)],
        num_heads=4,
    ),
    "mha causal": lambda: _microsoft(
        "MultiHeadAttention",
        [_f(2, 5, 32), _f(2, 5, 32), _f(2, 5, 32), None, None, _f(2, 4, 5, 5)],
        num_heads=4,
        unidirectional=1,
    ),
    "mha cache": lambda: _microsoft(
        "MultiHeadAttention",
        [*[_f(2, 5, 32)] * 3, None, None, None, _f(2, 4, 3, 8), _f(2, 4, 3, 8)],
        3,
        num_heads=4,
    ),
    "attention": lambda: _microsoft(
        "Attention", [_f(2, 5, 32), _f(32, 96), _f(96), _i(5, 3)], num_heads=4
    ),
    "attention cache": lambda: _microsoft(
        "Attention",
        [_f(2, 5, 32), _f(32, 96), _f(96), None, _f(2, 2, 4, 3, 8)],
        2,
        num_heads=4,
        unidirectional=1,
    ),
    "rotary": lambda: _microsoft(
        "RotaryEmbedding",
        [_f(2, 5, 32), torch.arange(10).reshape(2, 5), _f(16, 4), _f(16, 4)],
        num_heads=4,
    ),
    "rotary part": lambda: _microsoft(
        "RotaryEmbedding",
        [_f(2, 5, 32), torch.tensor([3]), _f(16, 2), _f(16, 2)],
        num_heads=4,
        rotary_embedding_dim=4,
    ),
    "skip norm": lambda: _microsoft(
        "SkipLayerNormalization", [_f(2, 3, 8), _f(3, 8), _f(8), _f(8), _f(8)], epsilon=1e-3
    ),
    "embed norm": lambda: _microsoft(
        "EmbedLayerNormalization",
        [_i(1, 2, 3)[None], _i(0, 1, 0)[None], _f(9, 8), _f(9, 8), _f(2, 8), _f(8), _f(8)],
        2,
    ),
    "fused matmul": lambda: _microsoft(
        "FusedMatMul", [_f(3, 2, 4), _f(5, 2, 4)], transBatchA=1, transBatchB=1, transB=1
    ),
    "experts": lambda: _moe(6, True),
    "experts gelu": lambda: _moe(6, activation_type="gelu", normalize_routing_weights=1),
    "experts silu": lambda: _moe(6, activation_type="silu"),
    "experts swiglu": lambda: _moe(12, True, **_SWIGLU, normalize_routing_weights=1),
    "experts bent swiglu": lambda: _moe(
        12, **_SWIGLU, activation_alpha=1.7, activation_beta=1.0, swiglu_limit=0.5
    ),
    "bias gelu": lambda: _microsoft("BiasGelu", [_f(2, 3, 8), _f(8)]),
    "fast gelu": lambda: _microsoft("FastGelu", [_f(2, 3, 8), _f(8)]),
    "quick gelu": lambda: _microsoft("QuickGelu", [_f(2, 3, 8)]),
    **{
        f"matmul {bits} bits, block {block}, zero points {zeros}": partial(
            _nbits, bits, block, zeros
        )
        for bits in (2, 4, 8)
        for block in (16, 32)
        for zeros in (False, True)
    },
    **{
        f"gather {bits} bits, zero points {zeros}": partial(_gathered, bits, zeros)
        for bits in (2, 4, 8)
        for zeros in (False, True)
    },
}


@pytest.mark.ort
@pytest.mark.parametrize("case", CONTRIB)
def test_contrib_operator(case: str) -> None:
    model, inputs = CONTRIB[case]()
    results = lower_model(model)(*inputs)
    for result, expected in zip(results, _runtime(model, inputs), strict=True):
        assert str(result.dtype).endswith(str(expected.dtype))
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.ort
def test_ragged_cache() -> None:
    """Each sequence has its own length; what lies beyond it is nobody's."""
    model, inputs = _gqa([8, 5], 8, 7)
    output, key, _ = lower_model(model)(*inputs)
    expected, expected_key, _ = _runtime(model, inputs)
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(key[1, :, :5].numpy(), expected_key[1, :, :5], atol=1e-4)


@pytest.mark.ort
def test_prompt_padded_on_the_right() -> None:
    model, inputs = _gqa([5, 3], 5, 0)
    output, *_ = lower_model(model)(*inputs)
    expected, *_ = _runtime(model, inputs)
    np.testing.assert_allclose(output[0].numpy(), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output[1, :3].numpy(), expected[1, :3], rtol=1e-4, atol=1e-4)


@pytest.mark.ort
@pytest.mark.parametrize("rows", [3, 5])
@pytest.mark.parametrize(("steps", "before"), [(9, 0), (2, 0), (1, 2), (1, 9), (4, 7), (1, 4)])
def test_gqa_with_a_cache_of_a_window(steps: int, before: int, rows: int) -> None:
    total = steps + before
    model, inputs = _microsoft(
        "GroupQueryAttention",
        [
            _f(1, steps, 128),
            None,
            None,
            _f(1, 2, rows, 16),
            _f(1, 2, rows, 16) + 1,
            _i(total) - 1,
            torch.tensor(total, dtype=torch.int32),
            _f(32, 8),
            _f(32, 8) + 1,
        ],
        3,
        num_heads=4,
        kv_num_heads=2,
        do_rotary=1,
        local_window_size=3,
        sliding_window_cache=1,
    )
    freed = rows - 3 + 1
    resident = total - freed * -(-max(total - rows, 0) // freed)
    wanted = _runtime(model, inputs)
    got = lower_model(model)(*inputs)
    np.testing.assert_allclose(got[0].numpy(), wanted[0], atol=1e-5)
    for ours, theirs in zip(got[1:], wanted[1:], strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(
            ours.numpy()[:, :, :resident], theirs[:, :, :resident], atol=1e-5
        )
