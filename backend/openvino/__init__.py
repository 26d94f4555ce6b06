"""OpenVINO: running what ``insert-qdq`` writes for it."""

from __future__ import annotations

from .runner import OpenVinoSession, installation_problem, open_openvino

__all__ = ["OpenVinoSession", "installation_problem", "open_openvino"]
