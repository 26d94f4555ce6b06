"""Tuning what stored weights leave free, by gradients of the whole model's divergence."""
