"""mpqc: a compiler for quantized networks.

``import mpqc; mpqc.compile("model.onnx", budget=3.5)`` does what the command
``mpqc compile model.onnx --budget 3.5`` does. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .tools.api import CompileResult as CompileResult
    from .tools.api import compile as compile
    from .tools.api import plan as plan
    from .tools.planning.plan import Plan as Plan

_LAZY = {
    "compile": ".tools.api",
    "CompileResult": ".tools.api",
    "plan": ".tools.api",
    "Plan": ".tools.planning.plan",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name], __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
