"""Fast ways to run layers, each equal to PyTorch's own to rounding."""
