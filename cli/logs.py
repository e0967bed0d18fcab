"""The log of ``run`` and ``dev`` on standard error: a line a record, its fields at the end."""

import copy
import logging
import sys

from cli.exits import UsageError

_LEVELS = ("debug", "info", "warning", "error")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldsFormatter(logging.Formatter):
    """``12:00:01 INFO    engine.runner: runner serves runner=3f2a types=['Fulfil']``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """A database that is away is said in a sentence; other errors keep their traceback."""
        from engine.core.errors import StorageUnavailable

        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, StorageUnavailable):
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
            record.__dict__["error"] = error
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's own name
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        words = [f"{name}={value}" for name, value in fields.items()]
        return " ".join([super().formatMessage(record), *words])


def level_of(name: str) -> int:
    """The level by its name, or ``UsageError``."""
    if name.lower() not in _LEVELS:
        raise UsageError(f"there is no log level {name!r}: use {', '.join(_LEVELS)}")
    return logging.getLevelNamesMapping()[name.upper()]


def log_to_stderr(level: int) -> None:
    """Show records from ``level`` on; an app that has set up logging itself keeps its own way."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldsFormatter())
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("alembic").setLevel(logging.WARNING)
