"""CMPQ: outliers split off, the rest of each channel in codes of its own width."""
