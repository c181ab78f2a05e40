"""From slices to P(interior) to masks and numbered cells, exactly tiled, several at once."""
