"""Ours beside other engines, in one run on one server: ``python -m bench.peers``."""
