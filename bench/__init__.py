"""Measurements of the engine: ``python -m bench``."""
