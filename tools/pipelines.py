"""The pipelines that have names, and the only place in ``tools/`` that names passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..backend.onnxruntime.capabilities import load
from ..ir import Capabilities, UsageError
from ..ir.text_form import build_record, did_you_mean, parse_records
from ..passes.engine.pipeline.base import Pass
from ..passes.engine.pipeline.registry import pass_class
from .option_fields import specs
from .options import CalibrationOptions

DEFAULT_PRESET = "default"
QUICK_PRESET = "fast"
_BYTE_WIDE = 6.0  # bits per weight from which most rows are stored in 8 bits
_TARGET = specs(CalibrationOptions)["target"].default
_LOWERING = "@lowering"
_Steps = list[tuple[str, dict[str, Any]]]
_HEADROOM: _Steps = [("leave-headroom", {})]
_WHOLE_UNITS: _Steps = [("lower-convolutions", {}), ("lower-recurrent", {})]
_INTEGERS = "@integers"


@dataclass(frozen=True)
class Preset:
    """A pipeline for any budget and target.

    Attributes:
        summary: What it does, in one line.
        steps: The passes as users type them. Words that begin with @ stand for what is asked:
            ``@budget`` (bits per weight), ``@width`` (that most rows will have: 4 or 8),
            ``@outputs``, ``@integers`` (kernels that are offered), ``@activations`` (what the
            search for column scales assumes), ``@lowering`` and ``@opset`` (the passes that
            the target wants there).
        file_only: Whether weights take more room in memory than in the file, so that only the
            file can have a budget.
    """

    summary: str
    steps: tuple[str, ...]
    file_only: bool = False

    def passes(
        self,
        bits: float,
        *,
        target: str = _TARGET,
        outputs: str = "auto",
        activations: str = "none",
        integers: str = "none",
    ) -> tuple[Pass, ...]:
        """Returns the passes.

        Args:
            bits: Stored bits per weight.
            target: What the result shall run on.
            outputs: What the outputs are.
            activations: What products of INT8 weights read, if the target's lowering can tell
                them to.
            integers: Kernels of integers to offer, if the target has them beside others.
        """
        table = load(target)
        finishing: _Steps = [(name, {}) for name in table.finishing]
        lowering: _Steps = [(table.lowering, {}), *finishing]
        if activations != "none":
            headroom = _HEADROOM if table.needs_headroom else []
            rounding = (table.lowering, {"activations": activations})
            lowering = [*headroom, rounding, *finishing]
        elif integers != "none":
            whole_units = _WHOLE_UNITS if integers == "quickest" else []
            lowering = [*_HEADROOM, *whole_units, *lowering]
        opset = max(pass_class(name).opset for name, _ in lowering)
        places = {
            _LOWERING: lowering,
            "@opset": [("raise-opset", {"version": opset})] if opset else [],
        }
        whole = activations != "none" or integers == "quickest"
        words = {
            "@budget": bits,
            "@width": 4 if bits < _BYTE_WIDE else 8,
            "@outputs": outputs,
            # The search assumes what the lowering will do: one scale for a whole activation.
            "@activations": "tensor" if whole else "auto",
            _INTEGERS: integers,
        }
        return _build(",".join(self.steps), places, words, table)

    @property
    def takes_integers(self) -> bool:
        """Returns whether kernels of integers can be offered beside others."""
        return any(_INTEGERS in step for step in self.steps)

    def fits(self, target: str) -> bool:
        """Returns whether the target runs what the preset makes."""
        return _LOWERING in self.steps or load(target).lowering == Capabilities.lowering


def _build(
    text: str,
    places: Mapping[str, _Steps],
    words: Mapping[str, Any],
    table: Capabilities,
) -> tuple[Pass, ...]:
    """Builds passes from text, with ``places`` instead of passes and ``words`` of values."""
    passes = []
    for record in parse_records(text):
        for name, options in places.get(record[0], [record]):
            given = {key: words.get(value, value) for key, value in options.items()}
            if not table.keeps_columns:
                given.pop("keep", None)
            passes.append(build_record(pass_class(name), name, given))
    return tuple(passes)


_IN_FORM = ("normalize", "@opset", "fold-affine", "partition-blocks")
_PREPARED = (*_IN_FORM, "calibrate{objective=@outputs}")
_COUPLED = (*_IN_FORM, "calibrate{objective=@outputs, coupled=true}")
_LOWERED = (_LOWERING, "verify-numerics")
_ONE_GROUP = "annotate-sensitivity{metric=fisher, integers=@integers}"
_GROUPS = (
    "annotate-sensitivity{metric=fisher, groups=[32, 64, 128], integers=@integers,"
    " keep=[8, 32]}"
)
_BY_ROW = (
    "allocate-bits{budget=@budget, granularity=row, fold=true}",
    "fold-permutations",
)
_ROUNDED = "quantize-weights{rounding=gptq}"
_ROUNDED_COUPLED = "quantize-weights{rounding=gptq, coupled=true}"
_UNIFORM = (
    _ONE_GROUP,
    "allocate-bits{budget=@budget, method=uniform}",
    "quantize-weights{rounding=gptq}",
)
_APTQ = (
    "attention-hessians{samples=16}",
    "annotate-sensitivity{metric=trace}",
    "allocate-bits{budget=@budget, method=ratio, bits=[4, 2]}",
    "quantize-weights{rounding=gptq, sequential=layer, samples=16}",
)
_SEARCHED = (
    "rewrite-crossquant{alpha=search, beta=search, bits=@width, activations=@activations"
)
_FOLDED = f"{_SEARCHED}}}"
_FOLDED_IF_CLEAR = f"{_SEARCHED}, least=0.05, optional=true}}"


def _by_block(metric: str) -> tuple[str, ...]:
    """Returns CPTQuant's steps inside a budget: whole units by the scores of their blocks."""
    return (
        *_PREPARED,
        f"annotate-sensitivity{{metric={metric}}}",
        "allocate-bits{budget=@budget, granularity=unit}",
        "quantize-weights{rounding=gptq}",
        *_LOWERED,
    )


def _by_cluster(metric: str) -> tuple[str, ...]:
    """Returns CPTQuant's steps as published: clusters of scores, rounding to nearest."""
    return (
        *_PREPARED,
        f"annotate-sensitivity{{metric={metric}, bits=[4, 8, 16]}}",
        "allocate-bits{budget=@budget, method=clusters, bits=[16, 8, 4]}",
        "quantize-weights{rounding=nearest}",
        *_LOWERED,
    )


def _by_channel(levels: str) -> tuple[str, ...]:
    """Returns CMPQ's steps: outliers apart, bits by input channel, one kind of levels."""
    return (
        "normalize",
        "raise-opset{version=16}",  # single outliers are added by its ScatterElements
        *_PREPARED[2:],
        "split-outliers{by=activation, share=0.0045}",
        "split-outliers{by=quantization, share=0.0005}",
        f"allocate-channels{{budget=@budget, levels={levels}}}",
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


# What benchmarks run by hand, and what messages show.
CALIBRATED = "normalize,partition-blocks,calibrate"
PLAIN_GPTQ = "quantize-weights{refinements=0}"
PREDICTED = f"{CALIBRATED},annotate-sensitivity{{metric=fisher}}"
MEASURED_APART = (
    f"{CALIBRATED},annotate-sensitivity{{metric=kl, units=@units, samples=@samples}}"
)
HALF = "normalize,convert-floats"
CHANGED_PRESET = "fast + quantize-weights{rounding=nearest}"


def passes_of(text: str, **words: Any) -> tuple[Pass, ...]:
    """Returns the passes of a text in which ``@key`` stands for each of ``words``."""
    return _build(text, {}, {f"@{key}": value for key, value in words.items()}, load(_TARGET))
