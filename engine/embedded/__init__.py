"""A PostgreSQL server of the project's own, for development, demos and tests.

``server`` joins and leaves it, ``keeper`` is the process that holds it, ``account`` says whom it
runs as and where that user can go, ``binaries`` where the programs come from.
"""

from engine.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
