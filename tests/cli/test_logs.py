"""The log of ``run`` and ``dev``: lines for people."""

import logging
import sys

from cli.logs import FieldsFormatter
from engine.core.errors import StorageUnavailable


def logged(error: Exception) -> str:
    try:
        raise error
    except (StorageUnavailable, ValueError):
        record = logging.makeLogRecord({"msg": "trying again", "exc_info": sys.exc_info()})
    return FieldsFormatter().format(record)


def test_a_database_that_is_away_is_said_in_one_line() -> None:
    line = logged(StorageUnavailable("PostgreSQL cannot be reached: is it running there?"))

    assert line.endswith("trying again error=PostgreSQL cannot be reached: is it running there?")
    assert len(line.splitlines()) == 1


def test_any_other_error_keeps_its_traceback() -> None:
    assert "Traceback" in logged(ValueError("a bug"))
