"""ONNX Runtime: what its targets can run, and running it."""

from __future__ import annotations

from .capabilities import installed_runtime_problem, load, targets
from .probing import Probe, probe
from .runner import RuntimeSession, open_session, optimized_ops

__all__ = [
    "Probe",
    "RuntimeSession",
    "installed_runtime_problem",
    "load",
    "open_session",
    "optimized_ops",
    "probe",
    "targets",
]
