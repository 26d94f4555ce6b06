"""Column scales: where they may enter a graph, which are best, and the forms that run."""
