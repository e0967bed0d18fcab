"""The history of an execution: its journal for people, and all that a replay of it needs.

Read by ``client_execution`` and the CLI; kept in files as JSON, a line for the execution and one
for each row, and replayed from there by ``engine.testing``.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar, cast

from engine import admin
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import InvalidPayload, NotFound
from engine.core.ids import EntityAddress, EntityId, EntityType, ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.outcome import JournalEvent
from engine.core.status import Status
from engine.storage.protocol import LoadedExecution, Storage, StoredExecution
from engine.workflow.tags import RUN

T = TypeVar("T")
Form = dict[str, object]
_LAST: Final = (1 << 31) - 1
_FORMAT: Final = 1
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError)


class History(list[JournalEvent]):
    """An execution's journal: a list of its events, which knows the execution they are of, so that
    it can be replayed and exported. A slice or copy of it is a plain list and knows nothing."""

    def __init__(self, recorded: LoadedExecution) -> None:
        super().__init__(admin.event(row) for row in recorded.journal)
        self.recorded: LoadedExecution = recorded

    @property
    def workflow(self) -> str:
        """The name of its workflow."""
        return self.recorded.execution.workflow

    @property
    def id(self) -> str:
        """The execution's id within its workflow."""
        return self.recorded.execution.execution_id

    @property
    def runs(self) -> list[LoadedExecution]:
        """The execution as each of its runs left it; none when it has not begun."""
        state, journal = self.recorded.execution, self.recorded.journal
        if state.started_at is None and not journal:
            return []
        runs: list[LoadedExecution] = []
        version = state.version
        # Each run but the first begins with a row: what says that there were more has lost them.
        first = max(1, state.run - len(journal))
        for run in range(state.run, first - 1, -1):
            rows = [row for row in journal if row.run == run]
            loaded = replace(
                self.recorded, execution=replace(state, run=run, version=version), journal=rows
            )
            runs.insert(0, loaded)
            if rows and rows[0].kind is JournalKind.CONTINUED:
                version = rows[0].ordinal  # a run that was repaired is of the version it was of
        return runs

    def export(self) -> str:
        """Itself as text, for ``read_histories``: lines of JSON."""
        forms = [_head(self.recorded), *map(_line, self.recorded.journal)]
        return "".join(f"{_json(form)}\n" for form in forms)


async def history_of(storage: Storage, execution: Snowflake) -> History:
    """The history of an execution as it stands; ``NotFound``."""
    # The state is read first: the journal may be ahead of it, never behind.
    loaded = await storage.load([execution])
    if not loaded:
        raise NotFound(f"there is no execution of request id {execution}")
    return History(replace(loaded[0], journal=await storage.history(execution)))


def read_histories(lines: Iterable[str]) -> Iterator[History]:
    """What ``export`` wrote, any number of histories one after the other.

    ``InvalidPayload`` names the line that is none of it.
    """
    head: LoadedExecution | None = None
    rows: list[JournalRow] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            form = json.loads(line)
            if "outlast" in form:
                if head is not None:
                    yield History(replace(head, journal=rows))
                head, rows = _read_head(form), []
            elif head is None:
                raise ValueError("it does not begin with the line of an execution")
            else:
                rows.append(_read_line(form, head.execution.request_id))
        except (*_MALFORMED, RecursionError, OverflowError) as error:
            raise InvalidPayload(
                f"line {number} is not of an exported history ({error}); write it with"
                " 'outlast history ID --export'"
            ) from error
    if head is not None:
        yield History(replace(head, journal=rows))


def _head(recorded: LoadedExecution) -> Form:
    state, envelope = recorded.execution, recorded.envelope
    return {
        "outlast": _FORMAT,
        "workflow": state.workflow,
        "id": state.execution_id,
        "request_id": str(state.request_id),
        "shard": [state.shard.group, state.shard.number],
        "status": str(state.status),
        "version": state.version,
        "run": state.run,
        "created_at": _time(state.created_at),
        "started_at": _time(state.started_at),
        "finished_at": _time(state.finished_at),
        "headers": dict(envelope.headers),
        **_payload("request", envelope.payload),
    }


def _read_head(form: Mapping[str, Any]) -> LoadedExecution:
    if form["outlast"] != _FORMAT:
        raise ValueError(f"it is of format {form['outlast']}, and this version reads {_FORMAT}")
    request_id = Snowflake(int(_typed(form, "request_id", str)))
    group, number = form["shard"]
    shard = ShardId(str(group), int(number))
    headers = cast("dict[object, object]", _typed(form, "headers", dict))
    workflow, id = _typed(form, "workflow", str), _typed(form, "id", str)
    execution = StoredExecution(
        request_id=request_id,
        workflow=workflow,
        execution_id=id,
        shard=shard,
        status=Status[form["status"].upper()],
        run=_count(form, "run"),
        version=_count(form, "version"),
        created_at=_when(form["created_at"]),
        started_at=_read_time(form["started_at"]),
        finished_at=_read_time(form["finished_at"]),
    )
    envelope = EnvelopeRequest(
        request_id=request_id,
        address=EntityAddress(shard, EntityType(workflow), EntityId(id)),
        tag=RUN,
        payload=_read_payload("request", form),
        headers={str(name): str(value) for name, value in headers.items()},
    )
    return LoadedExecution(execution=execution, envelope=envelope, journal=())


def _line(row: JournalRow) -> Form:
    return {
        "run": row.run,
        "position": row.position,
        "kind": row.kind.name.lower(),
        "name": row.name,
        "ordinal": row.ordinal,
        "attempt": row.attempt,
        "outcome": row.outcome.name.lower(),
        "at": _time(row.at),
        "started_at": _time(row.started_at),
        "due_at": _time(row.due_at),
        "source": None if row.source is None else str(row.source),
        "digest": str(row.digest),
        **_payload("payload", row.payload),
    }


def _read_line(form: Mapping[str, Any], execution: Snowflake) -> JournalRow:
    return JournalRow(
        execution=execution,
        run=_count(form, "run"),
        position=_count(form, "position"),
        kind=JournalKind[form["kind"].upper()],
        name=_typed(form, "name", str),
        ordinal=_count(form, "ordinal"),
        attempt=_count(form, "attempt"),
        outcome=Outcome[form["outcome"].upper()],
        at=_when(form["at"]),
        started_at=_read_time(form["started_at"]),
        due_at=_read_time(form["due_at"]),
        source=None if form["source"] is None else Snowflake(int(form["source"])),
        digest=int(form["digest"]),
        payload=_read_payload("payload", form),
    )


def _typed(form: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = form[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is no {kind.__name__}")
    return value


def _count(form: Mapping[str, Any], name: str) -> int:
    value = _typed(form, name, int)
    if not 0 <= value <= _LAST:
        raise ValueError(f"{name} is out of range")
    return value


def _payload(name: str, payload: bytes) -> Form:
    """As JSON where that is exactly what it says, else byte by byte."""
    if not payload:
        return {}
    value = admin.readable(payload)
    if not isinstance(value, bytes) and _json(value).encode(errors="surrogatepass") == payload:
        return {name: value}
    return {f"{name}_base64": base64.b64encode(payload).decode()}


def _read_payload(name: str, form: Mapping[str, Any]) -> bytes:
    if f"{name}_base64" in form:
        return base64.b64decode(cast("str", form[f"{name}_base64"]))
    return _json(form[name]).encode(errors="surrogatepass") if name in form else b""


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _read_time(text: str | None) -> datetime | None:
    return None if text is None else _when(text)


def _when(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(f"{text} is of no time zone")
    return when


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
