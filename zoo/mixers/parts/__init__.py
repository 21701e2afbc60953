"""Parts that mixers share: heads, caches, positions, norms, gates, feature maps, block patterns."""
