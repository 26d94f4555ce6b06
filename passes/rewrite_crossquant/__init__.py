"""rewrite-crossquant: column scales moved out of activations."""

from .rewrite_crossquant import RewriteCrossquant

__all__ = ["RewriteCrossquant"]
