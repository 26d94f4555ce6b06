"""Weights and activations as QuantizeLinear and DequantizeLinear."""

from .insert_qdq import InsertQdq

__all__ = ["InsertQdq"]
