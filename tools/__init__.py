"""The roof: the mpqc command and the Python API."""
