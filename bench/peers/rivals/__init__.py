"""Adapters that run in the rivals' own environments, and what is pinned there."""
