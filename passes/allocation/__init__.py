"""Which unit gets which option: what is to be decided, and one module a method."""
