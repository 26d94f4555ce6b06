"""The pipelines that have names: a preset is a pipeline made for a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..ir import UsageError
from ..ir.text_form import did_you_mean, print_value

OBJECTIVES = ("auto", "logits", "regression")

# What every preset does before it decides about bits.
_PREPARED = ("normalize", "partition-blocks")
_BYTE_WIDE = 6.0  # bits per weight from which most rows are stored in 8 bits
Preset = Callable[[float, str], str]


def calibrate(objective: str) -> str:
    """Returns the pass ``calibrate`` as text, with its objective where one was chosen."""
    return "calibrate" if objective == "auto" else f"calibrate{{objective={objective}}}"


def default_pipeline(bits: float, objective: str = "auto") -> str:
    """Fisher sensitivity by rows, exact allocation, shared row orders, GPTQ.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return ",".join((*_rounded(bits, objective), "lower-matmul-nbits", "verify-numerics"))


def tuned_pipeline(bits: float, objective: str = "auto") -> str:
    """The default, then the scales of all units tuned together: closer, and slower to compile.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    rounded = _rounded(bits, objective)
    return ",".join((*rounded, "tune-scales", "lower-matmul-nbits", "verify-numerics"))


def _rounded(bits: float, objective: str) -> tuple[str, ...]:
    """Returns the passes of the default method up to the rounding of the weights."""
    return (
        *_PREPARED,
        calibrate(objective),
        "annotate-sensitivity{metric=fisher}",
        f"allocate-bits{{budget={print_value(bits)}, granularity=row, fold=true}}",
        "fold-permutations",
        "quantize-weights{rounding=gptq}",
    )


def uniform_pipeline(bits: float, objective: str = "auto") -> str:
    """Uniform GPTQ: the same width for every unit, the largest that fits the budget.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return ",".join(
        (
            *_PREPARED,
            calibrate(objective),
            "annotate-sensitivity{metric=fisher}",
            f"allocate-bits{{budget={print_value(bits)}, method=uniform}}",
            "quantize-weights{rounding=gptq}",
            "lower-matmul-nbits",
            "verify-numerics",
        )
    )


def _cptquant_pipeline(bits: float, objective: str, metric: str) -> str:
    """A score for every block, whole units by the knapsack on it, GPTQ."""
    return ",".join(
        (
            *_PREPARED,
            calibrate(objective),
            f"annotate-sensitivity{{metric={metric}}}",
            f"allocate-bits{{budget={print_value(bits)}, granularity=unit}}",
            "quantize-weights{rounding=gptq}",
            "lower-matmul-nbits",
            "verify-numerics",
        )
    )


def _published_pipeline(bits: float, objective: str, metric: str) -> str:
    """A score for every block, clusters of scores at 16, 8 and 4 bits, rounding to nearest."""
    return ",".join(
        (
            *_PREPARED,
            calibrate(objective),
            f"annotate-sensitivity{{metric={metric}, bits=[4, 8, 16]}}",
            f"allocate-bits{{budget={print_value(bits)}, method=clusters, bits=[16, 8, 4]}}",
            "quantize-weights{rounding=nearest}",
            "lower-matmul-nbits",
            "verify-numerics",
        )
    )


def cptquant_cmpq_pipeline(bits: float, objective: str = "auto") -> str:
    """CPTQuant's CMPQ: bits for blocks by the canonical correlations of their outputs.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _cptquant_pipeline(bits, objective, "cca")


def cptquant_pmpq_pipeline(bits: float, objective: str = "auto") -> str:
    """CPTQuant's PMPQ: bits for blocks by what pruning them costs.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _cptquant_pipeline(bits, objective, "pruning")


def cptquant_tdmpq_pipeline(bits: float, objective: str = "auto") -> str:
    """CPTQuant's TDMPQ: bits for blocks by the first-order answer to noise on their weights.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _cptquant_pipeline(bits, objective, "taylor")


def cptquant_cmpq_published_pipeline(bits: float, objective: str = "auto") -> str:
    """CPTQuant's CMPQ with 16, 8 and 4 bits by clusters, refused where the budget is less.

    Args:
        bits: Stored bits per weight that the clusters may take.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _published_pipeline(bits, objective, "cca")


def cptquant_pmpq_published_pipeline(bits: float, objective: str = "auto") -> str:
    """CPTQuant's PMPQ with 16, 8 and 4 bits by clusters, refused where the budget is less.

    Args:
        bits: Stored bits per weight that the clusters may take.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _published_pipeline(bits, objective, "pruning")


def cptquant_tdmpq_published_pipeline(bits: float, objective: str = "auto") -> str:
    """CPTQuant's TDMPQ with 16, 8 and 4 bits by clusters, refused where the budget is less.

    Args:
        bits: Stored bits per weight that the clusters may take.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _published_pipeline(bits, objective, "taylor, form=perturbation")


def crossquant_pipeline(bits: float, objective: str = "auto") -> str:
    """CrossQuant: column scales searched and folded, then the default method.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    width = 4 if bits < _BYTE_WIDE else 8
    fold = f"rewrite-crossquant{{alpha=search, beta=search, bits={width}}}"
    prepared, rest = default_pipeline(bits, objective).split(",annotate-sensitivity", 1)
    return f"{prepared},{fold},annotate-sensitivity{rest}"


def aptq_pipeline(bits: float, objective: str = "auto") -> str:
    """APTQ: 4 and 2 bits by the trace of Hessians behind attention, rounding in sequence.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return ",".join(
        (
            *_PREPARED,
            calibrate(objective),
            "attention-hessians",
            "annotate-sensitivity{metric=trace}",
            f"allocate-bits{{budget={print_value(bits)}, method=ratio, bits=[4, 2]}}",
            "quantize-weights{rounding=gptq, sequential=layer}",
            "lower-matmul-nbits",
            "verify-numerics",
        )
    )


def cmpq_pipeline(bits: float, objective: str = "auto") -> str:
    """CMPQ: bits by channel from activation norms, free codebooks, both kinds of outliers.

    As published. Needs a file budget: the weights are floats in memory.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _channel_pipeline(bits, objective, "free")


def cmpq_grid_pipeline(bits: float, objective: str = "auto") -> str:
    """CMPQ with codebooks of 8-bit integers, which stock 8-bit kernels run.

    Needs a file budget: the weights have 8 bits in memory.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _channel_pipeline(bits, objective, "grid8")


def cmpq_even_pipeline(bits: float, objective: str = "auto") -> str:
    """CMPQ without codebooks: products split into one stock kernel for each width.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return _channel_pipeline(bits, objective, "even")


def _channel_pipeline(bits: float, objective: str, levels: str) -> str:
    return ",".join(
        (
            *_PREPARED,
            calibrate(objective),
            "split-outliers{by=activation, share=0.0045}",
            "split-outliers{by=quantization, share=0.0005}",
            f"allocate-channels{{budget={print_value(bits)}, levels={levels}}}",
            "quantize-channels",
            "lower-channels",
            "verify-numerics",
        )
    )


# The first line of a function's docstring is what `mpqc presets` says about it.
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "default": default_pipeline,
        "tuned": tuned_pipeline,
        "uniform": uniform_pipeline,
        "aptq": aptq_pipeline,
        "cptquant-cmpq": cptquant_cmpq_pipeline,
        "cptquant-cmpq-published": cptquant_cmpq_published_pipeline,
        "cptquant-pmpq": cptquant_pmpq_pipeline,
        "cptquant-pmpq-published": cptquant_pmpq_published_pipeline,
        "cptquant-tdmpq": cptquant_tdmpq_pipeline,
        "cptquant-tdmpq-published": cptquant_tdmpq_published_pipeline,
        "crossquant": crossquant_pipeline,
        "cmpq": cmpq_pipeline,
        "cmpq-grid": cmpq_grid_pipeline,
        "cmpq-even": cmpq_even_pipeline,
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


def summary(name: str) -> str:
    """Returns in one line what the preset does."""
    return (find_preset(name).__doc__ or "").strip().splitlines()[0]
