"""PyTorch forms of exact attention."""
