"""The vocabulary of the engine: values without I/O, imported by every layer above."""
