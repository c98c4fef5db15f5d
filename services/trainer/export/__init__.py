"""Files that serve a taught model elsewhere."""
