"""Pictures of every attention: the weights that it gives, and what it costs."""
