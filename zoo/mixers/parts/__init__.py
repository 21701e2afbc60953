"""What mixers are made of: heads, caches, positions, norms, gates, feature maps, block patterns."""
