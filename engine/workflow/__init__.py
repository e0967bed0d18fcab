"""What durable code is: definitions, the deterministic loop, executions, steps."""
