"""What is read out of an engine's account of itself, in the words of versions 10 and 11."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mpqc.backend.tensorrt import products
from mpqc.ir import InputError


def layer(kind: str, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Name": "layer", "LayerType": kind, "Inputs": list(inputs), "Outputs": [], **more}


def by_type(*layers: Any) -> dict[str, int]:
    return products(json.dumps({"Layers": list(layers), "Bindings": []})).by_type


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"Format/Datatype": "Half"}, "FP16"),
        ({"Format/Datatype": "Row major linear FP16 format"}, "FP16"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8"}, "INT8"),
        ({"Format/Datatype": "Float"}, "FP32"),
        ({"Format/Datatype": "BFloat16"}, "BF16"),
        ({"Format": "LINEAR", "DataType": "FP16"}, "FP16"),
        ({"Format": "LINEAR", "Datatype": "FP8"}, "FP8"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Int4"}, "INT4"),
    ],
)
def test_types_of_inputs_in_both_versions(told: dict[str, str], kind: str) -> None:
    assert by_type(layer("gemm", told)) == {kind: 1}


def test_the_narrowest_input_names_a_product() -> None:
    half, codes = {"DataType": "FP16"}, {"DataType": "Int4"}
    assert by_type(layer("MatrixMultiply", half, codes), layer("gemm", half, half)) == {
        "INT4": 1,
        "FP16": 1,
    }


def test_weights_and_kernels_tell_where_inputs_do_not() -> None:
    convolution = layer(
        "CaskConvolution", {"Format/Datatype": "Float"}, Weights={"Type": "Int8", "Count": 9}
    )
    fused = layer("fusion", TacticName="sm80_xmma_gemm_i8i8_i8i32_f32_tn")
    silent = layer("gemm")
    assert by_type(convolution, fused, silent) == {"INT8": 2, "untold": 1}


def test_what_is_no_product_does_not_count() -> None:
    kept = layer("gemm", {"DataType": "FP16"}, TacticName="sm90_gemm_f16")
    others = [
        layer("kgen", {"DataType": "FP16"}, TacticName="pointwise"),
        layer("Reformat", {"DataType": "FP16"}, TacticName="convert"),
        "only a name",
    ]
    found = products(json.dumps({"Layers": [kept, *others], "I/O Tensors": []}))
    assert found.layers == 4
    assert found.by_type == {"FP16": 1}
    assert found.kinds == {"gemm: FP16: sm90_gemm_f16": 1}


@pytest.mark.parametrize("account", ["", "[]", "{}", '{"Layers": 3}'])
def test_what_is_no_account_is_refused(account: str) -> None:
    with pytest.raises(InputError, match="no list of layers"):
        products(account)
