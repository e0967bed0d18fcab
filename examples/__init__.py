"""Programs to read, run and start from; the tests run each of them."""
