"""Whole small models against ONNX Runtime, gradients, and segments that make up a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from mpqc.backend.torch_fx import lower_model, lower_segment, unsupported, weight_attribute
from mpqc.ir.errors import InputError

LLAMA_BLOCK = """
<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>
block (float[batch, steps, 32] x, float[batch, 2, past, 16] past_key,
       float[batch, 2, past, 16] past_value, int32[batch] seqlens, int32 total,
       float[32] norm1, float[32] norm2, float[32, 128] qkv, float[64, 32] out,
       float[16, 8] cos, float[16, 8] sin,
       float[32, 48] gate, float[32, 48] up, float[48, 32] down)
   => (float[batch, steps, 32] y, float[batch, 2, all, 16] key, float[batch, 2, all, 16] value)
{
   h = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (x, norm1)
   packed = MatMul (h, qkv)
   attended, key, value = com.microsoft.GroupQueryAttention
      <num_heads = 4, kv_num_heads = 2, do_rotary = 1>
      (packed, "", "", past_key, past_value, seqlens, total, cos, sin)
   projected = MatMul (attended, out)
   n, "", "", residual = com.microsoft.SkipSimplifiedLayerNormalization
      <epsilon = 0.00001> (x, projected, norm2)
   g = MatMul (n, gate)
   s = Sigmoid (g)
   silu = Mul (g, s)
   u = MatMul (n, up)
   gated = Mul (silu, u)
   mlp = MatMul (gated, down)
   y = Add (residual, mlp)
}
"""


def _block() -> ir.Model:
    """A block whose inputs behind the fifth are weights."""
    model = ir.from_proto(onnx.parser.parse_model(LLAMA_BLOCK))
    rng = np.random.default_rng(0)
    for value in model.graph.inputs[5:]:
        shape = value.shape.numpy() if value.shape is not None else ()
        array = rng.normal(scale=0.3, size=shape).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    del model.graph.inputs[5:]
    return model


def _block_inputs(batch: int = 2, steps: int = 5, past: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, steps, 32),
        torch.randn(batch, 2, past, 16),
        torch.randn(batch, 2, past, 16),
        torch.full((batch,), past + steps - 1, dtype=torch.int32),
        torch.tensor(past + steps, dtype=torch.int32),
    ]


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


def _check(model: ir.Model, inputs: list[Tensor]) -> None:
    assert not unsupported(model.graph)
    with torch.no_grad():
        results = lower_model(model)(*inputs)
    for result, expected in zip(results, _runtime(model, inputs), strict=True):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.ort
@pytest.mark.parametrize(("batch", "steps", "past"), [(2, 5, 0), (1, 5, 3), (2, 1, 3)])
def test_block_of_a_language_model(batch: int, steps: int, past: int) -> None:
    _check(_block(), _block_inputs(batch, steps, past))


def test_segments_compose_to_the_whole() -> None:
    model, inputs = _block(), _block_inputs()
    nodes = list(model.graph)
    values = {v.name: v for node in nodes for v in node.outputs}
    seam = [values["n"], values["residual"]]
    first = lower_segment(nodes[:5], model.graph.inputs, [*seam, *model.graph.outputs[1:]])
    second = lower_segment(nodes[5:], seam, model.graph.outputs[:1], name="mlp")
    n, residual, key, value = first(*inputs)
    whole = lower_model(model)(*inputs)
    for piece, expected in zip((*second(n, residual), key, value), whole, strict=True):
        torch.testing.assert_close(piece, expected)


def test_gradients_agree_with_differences() -> None:
    model = _block()
    module = lower_model(model).double()
    x, *rest = (t.double() if t.is_floating_point() else t for t in _block_inputs(1, 3, 2))
    assert torch.autograd.gradcheck(
        lambda moved: module(moved, *rest)[0], (x.requires_grad_(),), fast_mode=True
    )


def test_weights_are_found_swapped_and_differentiated() -> None:
    model = _block()
    module = lower_model(model)
    inputs = _block_inputs()
    before = module(*inputs)[0]
    name = weight_attribute(module, model.graph.initializers["down"])
    assert name is not None
    weight = torch.zeros_like(module.get_buffer(name)).requires_grad_()
    setattr(module, name, weight)
    after = module(*inputs)[0]
    after.sum().backward()
    assert weight.grad is not None
    assert not torch.equal(before, after)
    assert weight_attribute(module, model.graph.inputs[0]) is None


def test_fx_nodes_are_found_by_value_and_name_their_origin() -> None:
    model = _block()
    for index, node in enumerate(model.graph):
        node.name = f"node{index}"
    module = lower_model(model)
    by_name = {node.name: node for node in module.graph.nodes}
    assert by_name[module.meta["values"]["gated"]].meta["onnx"] == "node9"
    assert by_name[module.meta["values"]["x"]].op == "placeholder"


def test_weights_are_not_copied() -> None:
    array = np.ones((4, 4), np.float32)
    array.flags.writeable = False
    weight = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    x = ir.Value(name="x")
    node = ir.node("MatMul", [x, weight])
    module = lower_segment([node], [x], node.outputs)
    assert module.get_buffer("w").data_ptr() == array.ctypes.data


@pytest.mark.parametrize("name", ["graph", "meta", "in", "0", "a.b/c", "forward", "x"])
def test_any_name_will_do(name: str) -> None:
    weight = ir.Value(name=name, const_value=ir.tensor(np.ones(2, np.float32), name=name))
    x = ir.Value(name="x")
    node = ir.node("Add", [x, weight])
    module = lower_segment([node], [x], node.outputs, name=name)
    assert torch.equal(module(torch.ones(2))[0], torch.full((2,), 2.0))
    assert weight_attribute(module, weight) is not None


def test_what_cannot_be_lowered_says_why() -> None:
    x = ir.Value(name="x")
    unknown = ir.node("Frobnicate", [x], domain="example.org")
    odd = ir.node("Softmax", [x], {"taste": 1})
    reasons = unsupported([unknown, odd])
    assert reasons[unknown] == "operator 'Frobnicate' of domain 'example.org' has no lowering"
    assert reasons[odd] == "attribute 'taste' is not known"
    with pytest.raises(InputError, match="Frobnicate"):
        lower_segment([unknown], [x], unknown.outputs)
    known = ir.node("Relu", [ir.Value(name="far")])
    with pytest.raises(InputError, match="'far', which is neither constant nor computed"):
        lower_segment([known], [], known.outputs)


def test_opset_decides_what_softmax_means() -> None:
    x = ir.Value(name="x")
    node = ir.node("Softmax", [x], {"axis": 1})
    tensor = torch.randn(2, 3, 4)
    node.version = 11
    flat = lower_segment([node], [x], node.outputs)(tensor)[0]
    node.version = 13
    along = lower_segment([node], [x], node.outputs)(tensor)[0]
    torch.testing.assert_close(flat.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(along.sum(1), torch.ones(2, 4))


def _f(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class _First(torch.nn.Module):
    """The first output of a model that takes keywords."""

    def __init__(self, model: torch.nn.Module, *names: str) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        result: Tensor = self.model(**dict(zip(self.names, tensors, strict=True)))[0]
        return result


def _bert(t: Any) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    config = t.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    ids = torch.arange(14).reshape(2, 7)
    return _First(t.BertModel(config), "input_ids", "attention_mask"), (
        ids,
        torch.ones_like(ids),
    )


def _opt(t: Any) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    config = t.OPTConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    ids = torch.arange(14).reshape(2, 7)
    model = _First(t.OPTForCausalLM(config), "input_ids", "attention_mask")
    return model, (ids, torch.ones_like(ids))


def _vit(t: Any) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    config = t.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return _First(t.ViTModel(config), "pixel_values"), (_f(2, 3, 32, 32),)


def _whisper(t: Any) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    config = t.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=20, num_mel_bins=8, vocab_size=99, pad_token_id=0,
    )  # fmt: skip
    return _First(t.WhisperModel(config).encoder, "input_features"), (_f(1, 8, 40),)


def _convolutional(_: Any) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1),
        torch.nn.BatchNorm2d(8),
        torch.nn.Hardswish(),
        torch.nn.MaxPool2d(2, ceil_mode=True),
        torch.nn.ConvTranspose2d(8, 4, 3, 2, 1, 1),
        torch.nn.GroupNorm(2, 4),
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
        torch.nn.PixelShuffle(2),
        torch.nn.AvgPool2d(4),
        torch.nn.Flatten(),
    )
    return model, (_f(2, 3, 30, 30),)


def _recurrent(_: Any) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    layer = torch.nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True)
    return layer, (_f(2, 5, 8),)


EXPORTED = {
    "bert": _bert,
    "opt": _opt,
    "vit": _vit,
    "whisper encoder": _whisper,
    "convolutions": _convolutional,
    "lstm": _recurrent,
}


def _export(
    model: torch.nn.Module, inputs: tuple[Tensor, ...], dynamo: bool, path: Path
) -> ir.Model:
    if dynamo:
        pytest.importorskip("onnxscript")
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
        assert program is not None
        return program.model
    torch.onnx.export(model, inputs, str(path), dynamo=False)
    return ir.load(path)


@pytest.mark.ort
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["script", "dynamo"]
)
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_model(name: str, dynamo: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = EXPORTED[name](transformers)
    _check(_export(model.eval(), inputs, dynamo, tmp_path / "model.onnx"), list(inputs))
