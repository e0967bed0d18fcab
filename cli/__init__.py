"""The ``outlast`` command: develop, run, look into and act on executions."""
