"""Running a graph block by block: samples, boundaries, workers, memory."""
