"""convert-floats: what is not quantized in 16 bits, where that keeps the numbers."""

from .convert_floats import ConvertFloats

__all__ = ["ConvertFloats"]
