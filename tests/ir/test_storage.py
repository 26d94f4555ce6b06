from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load
from mpqc.ir import Option, read_model, write_model
from mpqc.ir.analysis.storage import Storage, StoredWeight, stored
from mpqc.passes.engine.emission.cost import expansion_bytes
from mpqc.passes.lower_matmul_nbits import LowerMatMulNBits

from ..passes.rounded import context, round_model

ROWS, COLUMNS = 96, 128


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def parse(text: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def one(proto: onnx.ModelProto) -> tuple[StoredWeight, Storage]:
    storage = stored(ir.from_proto(proto))
    (weight,) = storage.units
    return weight, storage


HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
PRODUCT = f"""{HEAD} g (float[m, {COLUMNS}] A) => (float[m, {ROWS}] Y)
    {{ P = MatMul(A, W) Y = Add(P, C) }}"""
FLOATS = {"W": noise(COLUMNS, ROWS), "C": noise(ROWS)}


def test_float_product() -> None:
    weight, storage = one(parse(PRODUCT, FLOATS))
    assert (weight.rows, weight.columns, weight.widths) == (ROWS, COLUMNS, ((32, ROWS),))
    assert weight.bytes == weight.resident == ROWS * COLUMNS * 4
    assert weight.kinds == ("product",)
    assert storage.rest == ROWS * 4
    assert storage.bits_per_weight == 32


def test_tied_table_counts_once_in_the_file_and_twice_in_memory() -> None:
    text = f"""{HEAD} g (int64[m] I) => (float[m, {ROWS}] Y)
        {{ T = Transpose <perm = [1, 0]> (W) E = Gather(T, I) Q = Identity(E)
           Y = MatMul(Q, W) }}"""
    weight, _ = one(parse(text, {"W": noise(ROWS, ROWS)}))
    assert weight.bytes == ROWS * ROWS * 4
    assert weight.resident == 2 * weight.bytes
    assert weight.kinds == ("lookup", "product")


def test_half_precision_behind_a_cast_is_wide_in_memory() -> None:
    text = PRODUCT.replace("P = MatMul(A, W)", "V = Cast <to = 1> (W) P = MatMul(A, V)")
    weight, _ = one(parse(text, {**FLOATS, "W": FLOATS["W"].astype(np.float16)}))
    assert weight.widths == ((16, ROWS),)
    assert weight.resident == 2 * weight.bytes


def test_constant_nodes_convolutions_and_small_tables() -> None:
    text = f"""{HEAD} g (float[1, 8, 9, 9] A, int64[m] I)
            => (float[1, 64, 7, 7] Y, float[m, 4] S)
        {{ Y = Conv(A, W) S = Gather(T, I) }}"""
    proto = parse(text, {"T": noise(4, 4)})
    tensor = onnx.numpy_helper.from_array(noise(64, 8, 3, 3), "W")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["W"], value=tensor))
    weight, storage = one(proto)
    assert (weight.name, weight.rows, weight.columns) == ("W", 64, 72)
    assert weight.kinds == ("conv",)
    assert weight.kinds == ("conv",)
    assert weight.why_float == ""
    assert storage.rest == 4 * 4 * 4


def test_model_without_weights() -> None:
    text = f"{HEAD} g (float[m] A) => (float[m] Y) {{ Y = Neg(A) }}"
    storage = stored(ir.from_proto(parse(text, {})))
    assert storage.units == ()
    assert storage.bits_per_weight == 0


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 32), (2, 64)])
def test_matmulnbits_with_zero_points(bits: int, block: int) -> None:
    groups = COLUMNS // block
    text = PRODUCT.replace(
        "P = MatMul(A, W)",
        f"""P = com.microsoft.MatMulNBits
            <K = {COLUMNS}, N = {ROWS}, bits = {bits}, block_size = {block}>
            (A, W, S, Z, "", C)""".replace('""', ""),
    )
    arrays: dict[str, np.ndarray] = {
        "W": np.zeros((ROWS, groups, block * bits // 8), np.uint8),
        "S": noise(ROWS, groups),
        "Z": np.zeros((ROWS, -(-groups * bits // 8)), np.uint8),
        "C": noise(ROWS),
    }
    weight, storage = one(parse(text, arrays))
    assert weight.widths == ((bits, ROWS),)
    assert weight.bytes == sum(arrays[name].nbytes for name in "WSZ")
    assert storage.rest == arrays["C"].nbytes
    assert weight.weights == ROWS * COLUMNS


@pytest.mark.parametrize(("kind", "bits"), [("int4", 4), ("int8", 8)])
def test_blocked_dequantize_linear(kind: str, bits: int) -> None:
    text = PRODUCT.replace(
        "P = MatMul(A, W)",
        "V = DequantizeLinear <axis = 0, block_size = 32> (W, S) P = MatMul(A, V)",
    )
    proto = parse(text, {"S": noise(COLUMNS // 32, ROWS), "C": noise(ROWS)})
    dtype = onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8
    codes = np.zeros(COLUMNS * ROWS, np.int8)
    tensor = onnx.helper.make_tensor("W", dtype, [COLUMNS, ROWS], codes)
    proto.graph.initializer.append(tensor)
    weight, storage = one(proto)
    assert weight.widths == ((bits, ROWS),)
    assert weight.bytes == COLUMNS * ROWS * bits // 8 + COLUMNS // 32 * ROWS * 4
    assert storage.rest == ROWS * 4


def test_weights_of_an_lstm_are_weights() -> None:
    text = f"""{HEAD} g (float[m, 2, 64] A) => (float[m, 1, 2, 32] Y)
        {{ Y = LSTM <hidden_size = 32> (A, W, R) }}"""
    proto = parse(text, {"W": noise(1, 128, 64), "R": noise(1, 128, 32)})
    storage = stored(ir.from_proto(proto))
    assert {unit.name for unit in storage.units} == {"W", "R"}
    assert storage.bits_per_weight == 32


def shared_with_lookup(bits: int) -> onnx.ModelProto:
    text = f"""{HEAD} g (int64[m] I, float[m, {COLUMNS}] A)
            => (float[m, {ROWS}] Y, float[m, {COLUMNS}] E)
        {{ D = Reshape(W, F)
           E = com.microsoft.GatherBlockQuantized <bits = {bits}, block_size = 32,
               gather_axis = 0, quantize_axis = 1> (D, I, S)
           Y = com.microsoft.MatMulNBits
               <K = {COLUMNS}, N = {ROWS}, bits = {bits}, block_size = 32> (A, W, S) }}"""
    size = 32 * bits // 8
    arrays = {
        "W": np.zeros((ROWS, COLUMNS // 32, size), np.uint8),
        "S": noise(ROWS, COLUMNS // 32),
        "F": np.array([ROWS, COLUMNS // 32 * size]),
    }
    return parse(text, arrays)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_shared_by_product_and_lookup_count_once(bits: int) -> None:
    weight, _ = one(shared_with_lookup(bits))
    assert weight.weights == ROWS * COLUMNS
    assert weight.widths == ((bits, ROWS),)
    assert weight.kinds == ("lookup", "product")


def test_planes_joined_at_load_have_their_stored_width() -> None:
    text = PRODUCT.replace(
        "P = MatMul(A, W)",
        f"""B = Concat <axis = 2> (W2, W1, W1)
            P = com.microsoft.MatMulNBits
            <K = {COLUMNS}, N = {ROWS}, bits = 4, block_size = 32> (A, B, S)""",
    )
    groups = COLUMNS // 32
    arrays: dict[str, np.ndarray] = {
        "W2": np.zeros((ROWS, groups, 8), np.uint8),
        "W1": np.zeros((ROWS, groups, 4), np.uint8),
        "S": noise(ROWS, groups).astype(np.float32),
        "C": noise(ROWS),
    }
    planes = arrays["W2"].nbytes + arrays["W1"].nbytes
    weight, _ = one(parse(text, arrays))
    assert weight.widths == ((planes * 8 / (ROWS * COLUMNS), ROWS),)
    assert weight.bytes == planes + arrays["S"].nbytes


def dynamic(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(proto, folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", per_channel=True)
    return onnx.load(folder / "int8.onnx")


def nbits(proto: onnx.ModelProto, bits: int, symmetric: bool) -> onnx.ModelProto:
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

    work = quantizer.MatMulNBitsQuantizer(
        proto, bits=bits, block_size=32, is_symmetric=symmetric
    )
    work.process()
    result: onnx.ModelProto = work.model.model
    return result


@pytest.mark.ort
def test_file_of_the_dynamic_quantizer(tmp_path: Path) -> None:
    weight, storage = one(dynamic(parse(PRODUCT, FLOATS), tmp_path))
    assert weight.widths == ((8, ROWS),)
    assert weight.weights == ROWS * COLUMNS
    assert weight.bytes == ROWS * (COLUMNS + 5)
    assert storage.rest == ROWS * 4


@pytest.mark.ort
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_file_of_the_runtimes_own_quantizer(bits: int, symmetric: bool) -> None:
    proto = nbits(parse(PRODUCT, FLOATS), bits, symmetric)
    weight, storage = one(proto)
    sizes = sum(len(t.raw_data) for t in proto.graph.initializer if t.name != "C")
    assert weight.bytes == sizes
    assert storage.rest == ROWS * 4
    assert weight.widths == ((bits, ROWS),)


def lowered(text: str, name: str, options: tuple[str, ...], scratch: Path) -> ir.Model:
    model = ir.from_proto(parse(text, {name: noise(ROWS, COLUMNS)}))
    work = context(load("ort-cpu"), scratch)
    round_model(model, options, work.arrays)
    LowerMatMulNBits().run(model, work)
    return model


LOOKUP = f"""{HEAD} g (int64[m] I) => (float[m, {COLUMNS}] Y) {{ Y = Gather(T, I) }}"""
TIED = f"""{HEAD} g (int64[m] I) => (float[m, {ROWS}] Y)
    {{ E = Gather(T, I) V = Transpose <perm = [1, 0]> (T) Y = MatMul(E, V) }}"""
OWN = [
    ("4g32",),
    ("2g64",),
    ("8g64",),
    ("2g64", "4g32", "8g128"),
    *((f"{bits}g64",) for bits in (3, 5, 6, 7)),
    ("2g64", "3g32", "5g32", "8g128"),
]


@pytest.mark.parametrize("text", [LOOKUP, TIED])
@pytest.mark.parametrize("options", OWN)
def test_own_files_charge_everything_to_the_unit(
    text: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    model = lowered(text, "T", options, tmp_path)
    storage = stored(model)
    (weight,) = storage.units
    assert storage.rest == 0
    assert (weight.name, weight.rows, weight.columns) == ("T", ROWS, COLUMNS)
    assert [bits for bits, _ in weight.widths] == [int(text[0]) for text in options]


@pytest.mark.parametrize("text", [LOOKUP, TIED])
@pytest.mark.parametrize("options", OWN)
def test_own_files_without_notes_have_the_same_bits(
    text: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    model = lowered(text, "T", options, tmp_path)
    expected = stored(model)
    for node in model.graph:
        node.metadata_props.clear()
    plain = stored(model)
    assert plain.weights == expected.weights
    assert expected.bytes - plain.bytes <= 256 * len(
        options
    )  # shapes and offsets of the lookup


PRODUCT_OF_ROWS = f"""{HEAD} g (float[m, {COLUMNS}] A) => (float[m, {ROWS}] Y)
    {{ V = Transpose <perm = [1, 0]> (T) Y = MatMul(A, V) }}"""


@pytest.mark.parametrize("text", [LOOKUP, TIED, PRODUCT_OF_ROWS])
@pytest.mark.parametrize("notes", [True, False])
def test_codes_that_expand_are_narrow_in_the_file_and_wide_in_memory(
    text: str, notes: bool, tmp_path: Path
) -> None:
    model = lowered(text, "T", ("3g64",), tmp_path)
    for node in model.graph:
        if not notes:
            node.metadata_props.clear()
    write_model(model, tmp_path / "model.onnx")
    (weight,) = stored(read_model(tmp_path / "model.onnx")).units
    assert weight.widths == ((3, ROWS),)
    assert weight.weights == ROWS * COLUMNS
    exact = ROWS * COLUMNS * 3 // 8 + ROWS * COLUMNS // 64 * 2
    assert exact < weight.bytes <= exact + 512
    wide = ROWS * COLUMNS // 2
    scales = ROWS * COLUMNS // 64 * (2 if text == LOOKUP else 4)
    copies = 2 if text == TIED else 1
    assert copies * wide + scales <= weight.resident <= copies * wide + 2 * scales + 512


def test_expansion_tables_that_units_share_count_once(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[m, {COLUMNS}] A) => (float[m, {COLUMNS}] Y)
        {{ P = MatMul(A, W) Y = MatMul(P, V) }}"""
    weights = {"W": noise(COLUMNS, ROWS), "V": noise(ROWS, COLUMNS)}
    model = ir.from_proto(parse(text, weights))
    work = context(load("ort-cpu"), tmp_path)
    round_model(model, ("3g32",), work.arrays)
    LowerMatMulNBits().run(model, work)
    first, second = stored(model).units
    codes = ROWS * COLUMNS * 3 // 8 + ROWS * COLUMNS // 32 * 2
    assert second.bytes == codes
    assert first.bytes - codes == expansion_bytes([Option(3, 32)])
    assert stored(model).rest == 0
