"""annotate-sensitivity: the cost of each row at each width and group size."""

from .annotate_sensitivity import AnnotateSensitivity

__all__ = ["AnnotateSensitivity"]
