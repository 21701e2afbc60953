"""Token stores: tokenized splits on disk."""
