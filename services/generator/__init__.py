"""Makes more wafers of a class."""
