"""What clients asked for and what became of it: the history that ``tests.chaos.checker`` judges.

A client notes each call in its file as it is invoked and again as it ends, so that a call in whose
middle the process dies is there, and unknown.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any

from engine import EngineError, RequestFailed, ShuttingDown, StorageUnavailable
from engine.core.reply import RUNNER_LOST


class Ended(StrEnum):
    OK = "ok"
    FAILED = "failed"
    """Refused: it did not happen. The value says why."""
    UNKNOWN = "unknown"
    """It may have happened, or happen yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``invoked`` and ``ended`` are seconds of the machine's monotonic clock, which all of its
    processes share; a call that is not known to have ended has infinity."""

    key: str
    op: str
    client: str = ""
    argument: Any = None
    invoked: float = 0.0
    ended: float = float("inf")
    outcome: Ended = Ended.UNKNOWN
    value: Any = None

    @property
    def known(self) -> bool:
        return self.outcome is not Ended.UNKNOWN

    def __str__(self) -> str:
        return (
            f"{self.invoked:.3f} to {self.ended:.3f} {self.client}: {self.op}({self.argument!r})"
            f" {self.outcome}, {self.value!r}"
        )


class Noted:
    """A call under way: its block sets ``value``, its end ``outcome``."""

    def __init__(self) -> None:
        self.value: Any = None
        self.outcome = Ended.UNKNOWN

    @property
    def ok(self) -> bool:
        return self.outcome is Ended.OK

    @property
    def unknown(self) -> bool:
        return self.outcome is Ended.UNKNOWN


class Recorder:
    """Notes the calls of one process."""

    def __init__(self, path: Path, client: str) -> None:
        self._file = path.open("ab", buffering=0)
        self._client = client
        self._numbers = count()

    @contextmanager
    def call(self, key: str, op: str, argument: object = None) -> Iterator[Noted]:
        """The block makes the call and sets the value. Errors of the engine end here."""
        nth, noted = next(self._numbers), Noted()
        began = {"key": key, "op": op, "argument": argument, "client": self._client}
        self._write({"nth": nth, **began, "invoked": time.monotonic()})
        try:
            yield noted
            noted.outcome = Ended.OK
        except (StorageUnavailable, ShuttingDown, TimeoutError) as error:
            noted.value = repr(error) if noted.value is None else noted.value
        except EngineError as error:
            lost = isinstance(error, RequestFailed) and error.error.root.type == RUNNER_LOST
            noted.outcome = Ended.UNKNOWN if lost else Ended.FAILED
            noted.value = f"{type(error).__name__}: {error}"
        finally:
            ended = {"outcome": noted.outcome, "value": noted.value, "ended": time.monotonic()}
            self._write({"nth": nth, **ended})

    def _write(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def read(paths: Iterable[Path]) -> list[Call]:
    """All calls in these files, by when they were invoked. A line that is cut off is none."""
    calls: list[Call] = []
    for path in paths:
        found: dict[int, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            found.setdefault(said.pop("nth"), {}).update(said)
        calls += [
            Call(**each | {"outcome": Ended(each.get("outcome", "unknown"))})
            for each in found.values()
        ]
    return sorted(calls, key=lambda call: call.invoked)
