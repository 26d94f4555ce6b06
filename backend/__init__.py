"""Where graphs run: torch for sweeps, ONNX Runtime for deployment."""
