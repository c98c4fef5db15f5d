"""Independent services and what they share."""
