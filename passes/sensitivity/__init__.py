"""What a unit loses under an option: which options there are, and one module a metric."""
