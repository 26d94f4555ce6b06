"""Pure numerics: arrays in, arrays out; nothing of mpqc is imported."""
