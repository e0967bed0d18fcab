"""The states of an execution, as stored and as shown."""

from enum import Enum


class Status(Enum):
    """Where an execution stands. The value is stored, the name in lower case is shown."""

    SCHEDULED = 0
    RUNNING = 1
    SUSPENDED = 2
    BLOCKED = 3
    PAUSED = 4
    SUCCEEDED = 5
    FAILED = 6
    INTERRUPTED = 7
    TERMINATED = 8

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def finished(self) -> bool:
        """Whether nothing of it will run again.

        >>> [str(status) for status in Status if status.finished]
        ['succeeded', 'failed', 'interrupted', 'terminated']
        """
        return self._value_ >= Status.SUCCEEDED._value_
