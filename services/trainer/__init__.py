"""Teaches models and publishes them."""
