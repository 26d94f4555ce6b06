"""What ONNX Runtime's own quantizers make of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx

from ....ir import Feeds

_BY_CHANNEL = 13  # the opset whose DequantizeLinear has an axis
Rival = Callable[[Path, Sequence[Feeds], Path], Path]


def dynamic(model: Path, feeds: Sequence[Feeds], output: Path) -> Path:
    """INT8 weights by channel; activations are rounded when the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del feeds
    quantize_dynamic(
        model,
        output,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=False,
    )
    return output


def static(model: Path, feeds: Sequence[Feeds], output: Path) -> Path:
    """INT8 weights, by channel where the opset can, and static activations."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the samples."""

        def __init__(self) -> None:
            self._rest: Iterator[Feeds] = iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self._rest, None)

    quantize_static(
        model,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=_opset(onnx.load(model, load_external_data=False)) >= _BY_CHANNEL,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return output


def _opset(proto: onnx.ModelProto) -> int:
    return max((one.version for one in proto.opset_import if not one.domain), default=1)


def nbits(bits: int) -> Rival:
    """Weights of MatMul in blocks of 32."""

    def quantize(model: Path, feeds: Sequence[Feeds], output: Path) -> Path:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        del feeds
        found = MatMulNBitsQuantizer(
            onnx.load(model), bits=bits, block_size=32, is_symmetric=True
        )
        found.process()
        onnx.save(found.model.model, output)
        return output

    return quantize


RIVALS: dict[str, Rival] = {
    "quantize_dynamic": dynamic,
    "quantize_static": static,
    "MatMulNBits, 8 bits": nbits(8),
    "MatMulNBits, 4 bits": nbits(4),
}
