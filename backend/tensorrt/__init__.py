"""TensorRT: building an engine of a graph, running it, and what its layers compute in."""

from __future__ import annotations

from .engine import Engine, build, open_engine
from .layers import Products, products

__all__ = ["Engine", "Products", "build", "open_engine", "products"]
