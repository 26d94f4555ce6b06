"""Output folders laid out for the program that is to run the model: one file a kind.

A module of each name below has ``KIND``. Importing this package imports none of them.
"""

KINDS = ("plain", "genai", "optimum", "triton", "web")
