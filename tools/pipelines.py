"""The pipelines that have names."""

from __future__ import annotations

from ..ir.text_form import print_value

OBJECTIVES = ("auto", "logits", "regression")


def default_pipeline(bits: float, *, objective: str = "auto") -> str:
    """Returns the default method as text: two sweeps, one solve, rounding, lowering, proof.

    Args:
        bits: Stored bits per weight.
        objective: What the sweeps differentiate (see ``calibrate``).
    """
    return ",".join(
        (
            "normalize",
            "partition-blocks",
            "calibrate" if objective == "auto" else f"calibrate{{objective={objective}}}",
            "annotate-sensitivity{metric=fisher}",
            f"allocate-bits{{budget={print_value(bits)}, granularity=row, fold=true}}",
            "fold-permutations",
            "quantize-weights{rounding=gptq}",
            "lower-matmul-nbits",
            "verify-numerics",
        )
    )
