"""Where messages rest: rows and locks behind one protocol, in PostgreSQL or in memory."""
