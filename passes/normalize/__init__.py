"""normalize: constants, shapes and names in one form."""

from .normalize import Normalize

__all__ = ["Normalize"]
