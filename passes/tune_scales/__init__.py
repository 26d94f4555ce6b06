"""tune-scales: all scales together, by the divergence of the whole model."""

from .tune_scales import TuneScales

__all__ = ["TuneScales"]
