"""The pipelines that have names: a preset is a pipeline for any budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..ir import UsageError
from ..ir.text_form import did_you_mean, print_value

OBJECTIVES = ("auto", "logits", "regression")
_BYTE_WIDE = 6.0  # bits per weight from which most rows are stored in 8 bits


@dataclass(frozen=True)
class Preset:
    """A pipeline with a place for the budget.

    Attributes:
        summary: What it does, in one line.
        passes: The passes as text. ``{budget}`` stands for the bits per weight, ``{width}``
            for the width that most rows will have: 4 or 8.
        file_only: Whether weights take more room in memory than in the file, so that only the
            file can have a budget.
    """

    summary: str
    passes: tuple[str, ...]
    file_only: bool = False

    def __call__(self, bits: float, objective: str = "auto") -> str:
        """Returns the pipeline as text.

        Args:
            bits: Stored bits per weight.
            objective: What the sweeps differentiate (see ``calibrate``).
        """
        text = ",".join(self.passes)
        if objective != "auto":
            text = _with_objective(text, objective)
        width = "4" if bits < _BYTE_WIDE else "8"
        return text.replace("{budget}", print_value(bits)).replace("{width}", width)


def _with_objective(text: str, objective: str) -> str:
    """Adds the option to the first pass that calibrates."""
    options = f"objective={objective}"
    if f"{_CALIBRATE}{{" in text:
        return text.replace(f"{_CALIBRATE}{{", f"{_CALIBRATE}{{{options}, ", 1)
    return text.replace(_CALIBRATE, f"{_CALIBRATE}{{{options}}}", 1)


_CALIBRATE = "calibrate"
_IN_FORM = ("normalize", "partition-blocks")
_PREPARED = (*_IN_FORM, _CALIBRATE)
_COUPLED = (*_IN_FORM, f"{_CALIBRATE}{{coupled=true}}")
_LOWERED = ("lower-matmul-nbits", "verify-numerics")
_ONE_GROUP = "annotate-sensitivity{metric=fisher}"
_GROUPS = "annotate-sensitivity{metric=fisher, groups=[32, 64, 128], keep=[8, 32]}"
_BY_ROW = (
    "allocate-bits{budget={budget}, granularity=row, fold=true}",
    "fold-permutations",
)
_ROUNDED = "quantize-weights{rounding=gptq}"
_ROUNDED_COUPLED = "quantize-weights{rounding=gptq, coupled=true}"
_UNIFORM = (
    _ONE_GROUP,
    "allocate-bits{budget={budget}, method=uniform}",
    "quantize-weights{rounding=gptq}",
)
_APTQ = (
    "attention-hessians{samples=16}",
    "annotate-sensitivity{metric=trace}",
    "allocate-bits{budget={budget}, method=ratio, bits=[4, 2]}",
    "quantize-weights{rounding=gptq, sequential=layer, samples=16}",
)
_FOLDED = "rewrite-crossquant{alpha=search, beta=search, bits={width}}"
_FOLDED_IF_CLEAR = (
    "rewrite-crossquant{alpha=search, beta=search, bits={width}, least=0.05, optional=true}"
)


def _by_block(metric: str) -> tuple[str, ...]:
    """Returns CPTQuant's steps inside a budget: whole units by the scores of their blocks."""
    return (
        *_PREPARED,
        f"annotate-sensitivity{{metric={metric}}}",
        "allocate-bits{budget={budget}, granularity=unit}",
        "quantize-weights{rounding=gptq}",
        *_LOWERED,
    )


def _by_cluster(metric: str) -> tuple[str, ...]:
    """Returns CPTQuant's steps as published: clusters of scores, rounding to nearest."""
    return (
        *_PREPARED,
        f"annotate-sensitivity{{metric={metric}, bits=[4, 8, 16]}}",
        "allocate-bits{budget={budget}, method=clusters, bits=[16, 8, 4]}",
        "quantize-weights{rounding=nearest}",
        *_LOWERED,
    )


def _by_channel(levels: str) -> tuple[str, ...]:
    """Returns CMPQ's steps: outliers apart, bits by input channel, one kind of levels."""
    return (
        "normalize",
        "raise-opset{version=16}",  # single outliers are added by its ScatterElements
        *_PREPARED[1:],
        "split-outliers{by=activation, share=0.0045}",
        "split-outliers{by=quantization, share=0.0005}",
        f"allocate-channels{{budget={{budget}}, levels={levels}}}",
        "quantize-channels",
        "lower-channels",
        "verify-numerics",
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "default": Preset(
            "Column scales, exact allocation by row, GPTQ of coupled rows, tuned scales.",
            (
                *_COUPLED,
                _FOLDED_IF_CLEAR,
                _GROUPS,
                *_BY_ROW,
                _ROUNDED_COUPLED,
                "tune-scales",
                *_LOWERED,
            ),
        ),
        "fast": Preset(
            "The default without folds: one group size, each row by itself, scales not tuned.",
            (*_PREPARED, _ONE_GROUP, *_BY_ROW, _ROUNDED, *_LOWERED),
        ),
        "uniform": Preset(
            "Uniform GPTQ: the same width for every unit, the largest that fits the budget.",
            (*_PREPARED, *_UNIFORM, *_LOWERED),
        ),
        "aptq": Preset(
            "APTQ: 4 and 2 bits by the trace of attention's Hessians, rounding in sequence.",
            (*_PREPARED, *_APTQ, *_LOWERED),
        ),
        "cptquant-cmpq": Preset(
            "CPTQuant's CMPQ: bits for blocks by the canonical correlations of their outputs.",
            _by_block("cca"),
        ),
        "cptquant-cmpq-published": Preset(
            "CPTQuant's CMPQ with 16, 8 and 4 bits by clusters, refused if over the budget.",
            _by_cluster("cca"),
        ),
        "cptquant-pmpq": Preset(
            "CPTQuant's PMPQ: bits for blocks by what pruning them costs.",
            _by_block("pruning"),
        ),
        "cptquant-pmpq-published": Preset(
            "CPTQuant's PMPQ with 16, 8 and 4 bits by clusters, refused if over the budget.",
            _by_cluster("pruning"),
        ),
        "cptquant-tdmpq": Preset(
            "CPTQuant's TDMPQ: bits for blocks by the first-order answer to noise on weights.",
            _by_block("taylor"),
        ),
        "cptquant-tdmpq-published": Preset(
            "CPTQuant's TDMPQ with 16, 8 and 4 bits by clusters, refused if over the budget.",
            _by_cluster("taylor, form=perturbation"),
        ),
        "crossquant": Preset(
            "CrossQuant: column scales searched and folded, then the method of fast.",
            (*_PREPARED, _FOLDED, _ONE_GROUP, *_BY_ROW, _ROUNDED, *_LOWERED),
        ),
        "cmpq": Preset(
            "CMPQ as published: free codebooks by channel; needs a file budget.",
            _by_channel("free"),
            file_only=True,
        ),
        "cmpq-grid": Preset(
            "CMPQ with codebooks that stock 8-bit kernels run; needs a file budget.",
            _by_channel("grid8"),
            file_only=True,
        ),
        "cmpq-even": Preset(
            "CMPQ without codebooks: products split into one stock kernel for each width.",
            _by_channel("even"),
        ),
    }
)


def find_preset(name: str) -> Preset:
    """Returns the preset called ``name``.

    Raises:
        UsageError: There is none.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", hint=did_you_mean(name, PRESETS))
    return PRESETS[name]
