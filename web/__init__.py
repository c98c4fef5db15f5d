"""Static files of the portal."""
