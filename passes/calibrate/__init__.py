"""calibrate: second moments of activations and gradients for every unit."""

from .calibrate import Calibrate

__all__ = ["Calibrate"]
