"""Many models that other people made, and what quantizers make of them."""
