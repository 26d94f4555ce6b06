"""What mpqc's results and mpqc itself cost: ``python -m mpqc.tools.benchmarks --help``."""
