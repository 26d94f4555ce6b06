"""The passes that exist: one line each. Adding a pass means adding one line here."""

from __future__ import annotations

from importlib import import_module

from ....ir import UsageError
from ....ir.text_form import did_you_mean
from .base import Pass

# module:class, imported only when asked for. Users type the module's last name, with dashes.
PASSES: tuple[str, ...] = (
    "normalize:Normalize",
    "raise_opset:RaiseOpset",
    "fold_affine:FoldAffine",
    "partition_blocks:PartitionBlocks",
    "calibrate:Calibrate",
    "attention_hessians:AttentionHessians",
    "rewrite_crossquant:RewriteCrossquant",
    "annotate_sensitivity:AnnotateSensitivity",
    "allocate_bits:AllocateBits",
    "cmpq.split_outliers:SplitOutliers",
    "cmpq.allocate_channels:AllocateChannels",
    "fold_permutations:FoldPermutations",
    "quantize_weights:QuantizeWeights",
    "tune_scales:TuneScales",
    "cmpq.quantize_channels:QuantizeChannels",
    "leave_headroom:LeaveHeadroom",
    "insert_qdq.lower_convolutions:LowerConvolutions",
    "lower_recurrent:LowerRecurrent",
    "lower_matmul_nbits:LowerMatMulNBits",
    "insert_qdq:InsertQdq",
    "cmpq.lower_channels:LowerChannels",
    "convert_floats:ConvertFloats",
    "fit_tensorrt:FitTensorrt",
    "verify_numerics:VerifyNumerics",
)


def _typed_name(entry: str) -> str:
    return entry.partition(":")[0].rpartition(".")[2].replace("_", "-")


_BY_NAME = {_typed_name(entry): entry for entry in PASSES}


def pass_names() -> tuple[str, ...]:
    """Returns the names of all passes in the order of the default pipeline, importing none."""
    return tuple(_BY_NAME)


def pass_class(name: str) -> type[Pass]:
    """Returns the pass called ``name``.

    Raises:
        UsageError: There is no such pass.
    """
    if name not in _BY_NAME:
        raise UsageError(f"unknown pass {name!r}", hint=did_you_mean(name, _BY_NAME))
    module, _, cls = _BY_NAME[name].partition(":")
    found: type[Pass] = getattr(import_module(f"...{module}", __package__), cls)
    return found


def all_passes() -> tuple[type[Pass], ...]:
    """Returns every pass, importing them all."""
    return tuple(pass_class(name) for name in _BY_NAME)
