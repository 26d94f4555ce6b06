"""How long ONNX Runtime's kernels take: measured on this machine, or shipped tables."""
