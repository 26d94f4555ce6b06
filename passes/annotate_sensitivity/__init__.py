"""annotate-sensitivity: what each row costs at each width and group size."""

from .annotate_sensitivity import AnnotateSensitivity

__all__ = ["AnnotateSensitivity"]
