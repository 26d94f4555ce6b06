"""Scripts, one a tool, that the tool's own environment runs; nothing here imports mpqc."""
