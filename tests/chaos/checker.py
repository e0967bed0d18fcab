"""The judge of a chaos run: a pure function over what clients noted and what the database has.

The order of commits is judged by ``tests.chaos.commits``.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos.commits import Row, check_rows
from tests.chaos.history import Call, Ended
from tests.chaos.promises import Violation

INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A stored request and its exits. ``result`` is a success's value, or how it ended."""

    id: int
    key: str
    exits: int = 1
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    key: str
    due: datetime
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What the database has in the end. Keys are those of the calls."""

    requests: Sequence[Request] = ()
    rows: Sequence[Row] = ()
    timers: Sequence[Timer] = ()
    books: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    effects: Sequence[tuple[str, str]] = ()
    """Key and step of each row that a transaction inserted."""
    recorded: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many transactions each journal has with a result."""
    touched: Sequence[tuple[str, str, str]] = ()
    """Key, what it was called with, and idempotency key of each run of an activity."""
    left: Sequence[str] = ()
    """What is still to be delivered, or has not ended, in words."""


Found = Iterator[tuple[str, str]]
"""Promise and what is wrong."""


def check(calls: Sequence[Call], tables: Tables) -> list[Violation]:
    """Everything that is wrong; nothing, if all promises were kept."""
    violations = [
        Violation(promise=name, key=key, what=what)
        for key, found in _by_key(calls, tables)
        for name, what in found
    ]
    violations += [Violation(promise="ended", key=key, what="is left") for key in tables.left]
    violations += check_rows(tables.rows)
    violations += [
        Violation(promise="early", key=each.key, what=f"due {each.due}, at {each.at}")
        for each in tables.timers
        if each.at < each.due
    ]
    return violations


def of_key(calls: Iterable[Call], key: str) -> list[Call]:
    """The history of one key."""
    return [call for call in calls if call.key == key]


def _by_key(calls: Sequence[Call], tables: Tables) -> Iterator[tuple[str, Found]]:
    grouped: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        grouped[call.key].append(call)
    requests: dict[str, list[Request]] = defaultdict(list)
    for request in tables.requests:
        requests[request.key].append(request)
    checks: dict[str, Callable[[list[Call], list[Request]], Found]] = {
        "Life": _life,
        "Lots": _item,
        "Stream": _stream,
    }
    for key in sorted(grouped.keys() | requests.keys() | tables.books.keys()):
        of, found = grouped[key], requests.get(key, [])
        yield key, _exits(found)
        kind = key.partition("/")[0]
        if kind == "Account":
            yield key, _account(of, list(tables.books.get(key, ())))
        elif kind in checks:
            yield key, _one_request(of, found)
            yield key, checks[kind](of, found)
    yield from _steps(requests, tables)
    yield from _unseen(requests, tables)


def _unseen(requests: Mapping[str, list[Request]], tables: Tables) -> Iterator[tuple[str, Found]]:
    """What an execution with a result must have left in what the checks above look at."""
    ran = {key for key, *_ in tables.touched}
    woke = {timer.key for timer in tables.timers}
    noted = {row.request for row in tables.rows if row.what == "journal"}
    for key, found in requests.items():
        for request in found:
            if isinstance(request.result, dict):
                sources = {
                    "the activity": key in ran,
                    "what comes after the timer": key in woke,
                    "the note of its journal's rows": request.id in noted,
                }
                missing = [what for what, there in sources.items() if not there]
                yield key, iter([("lost", what) for what in missing])


def _exits(requests: list[Request]) -> Found:
    for request in requests:
        if request.exits != 1:
            yield "one exit", f"request {request.id} has {request.exits}"


def _one_request(calls: list[Call], requests: list[Request]) -> Found:
    """All that begin one key get the same request."""
    asked = [call for call in calls if call.op in ("start", "submit", "stream")]
    if requests and not asked:
        yield "invented", f"request {requests[0].id}"
    if len(requests) > 1:
        yield "one key", f"requests {[request.id for request in requests]}"
    for call in asked:
        if call.outcome is Ended.OK and not requests:
            yield "lost", f"the request of {call}"
        elif call.outcome is Ended.OK and call.op != "stream" and call.value != requests[0].id:
            yield "one key", f"request {requests[0].id} for {call}"
        elif call.outcome is Ended.FAILED and not (
            call.op == "stream" and "was ended" in str(call.value)
        ):
            yield "answered", str(call)


def _life(calls: list[Call], requests: list[Request]) -> Found:
    by: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by[call.op].append(call)
    for call in by["start another"]:
        if call.outcome is Ended.OK and any(start.outcome is Ended.OK for start in by["start"]):
            yield "one key", str(call)
    started = any(call.outcome is Ended.OK for call in by["start"])
    for call in by["signal"] + by["update"] + by["resolve"] + by["interrupt"] + by["join"]:
        if call.outcome is Ended.FAILED and started:
            yield "answered", str(call)
        if call.outcome is Ended.OK and not requests:
            yield "lost", f"the execution of {call}"
    for request in requests:
        yield from _result(request.result, by)


def _result(result: Any, by: Mapping[str, list[Call]]) -> Found:
    for call in by["join"]:
        if call.outcome is Ended.OK and call.value != result:
            yield "reply", f"{result} for {call}"
    if result == INTERRUPTED:
        if not by["interrupt"]:
            yield "invented", "an interrupt"
    elif isinstance(result, dict):
        yield from _told(result, by)
    else:
        yield "reply", f"it ended with {result!r}"


def _told(told: dict[str, Any], by: Mapping[str, list[Call]]) -> Found:
    """The result of an execution against what it was sent."""
    yield from _all_there(by["signal"], told["heard"], before=by["resolve"])
    yield from _all_there(by["update"], told["added"])
    for call in by["update"]:
        if call.outcome is Ended.OK and call.argument in told["added"]:
            place = told["added"].index(call.argument)
            if call.value != sum(told["added"][: place + 1]):
                yield "reply", f"{told['added']} for {call}"
    yield from _in_order(by["signal"], told["heard"])
    if told["value"] not in [call.argument for call in by["resolve"]]:
        yield "invented", f"the value {told['value']}"
    for call in by["resolve"]:
        if call.outcome is Ended.OK and call.value and call.argument != told["value"]:
            yield "reply", f"{told['value']} after {call}"
    for call in by["interrupt"]:
        if call.outcome is Ended.OK and call.ended < _first(by["resolve"]):
            yield "lost", str(call)
    if told["booked"] != 1:
        yield "reply", f"its own account had {told['booked']} entries after the first"


def _first(calls: Iterable[Call]) -> float:
    return min((call.invoked for call in calls), default=float("inf"))


def _all_there(
    calls: Iterable[Call], there: Sequence[Any], *, before: Iterable[Call] = ()
) -> Found:
    """Each of ``calls`` that was acknowledged ``before`` those is there, none twice, no other."""
    counted, last = Counter(there), _first(before)
    for call in calls:
        times = counted.pop(call.argument, 0)
        if times > 1:
            yield "twice", f"{times} times {call}"
        if not times and call.outcome is Ended.OK and call.ended < last:
            yield "lost", str(call)
        if times and call.outcome is Ended.FAILED:
            yield "invented", f"{call} is there"
    for name in counted:
        yield "invented", f"{name!r} in {there}"


def _in_order(calls: Iterable[Call], there: Sequence[Any]) -> Found:
    """Whoever was acknowledged before another was sent is before it."""
    known = {call.argument: call for call in calls}
    latest: Call | None = None
    for name in there:
        call = known.get(name)
        if call is None:
            continue
        if latest is not None and call.outcome is Ended.OK and call.ended < latest.invoked:
            yield "order", f"{call} comes after {latest}"
        if latest is None or call.invoked > latest.invoked:
            latest = call


def _account(calls: list[Call], book: list[str]) -> Found:
    changes = [call for call in calls if call.op != "peek"]
    if changes or book != ["life"]:  # what an execution sends to an account of its own
        yield from _all_there(changes, book)
    # A volatile message does not wait behind those that are stored.
    yield from _in_order([call for call in changes if call.op != "poke"], book)
    for call in calls:
        if call.outcome is Ended.FAILED and (
            call.op in ("add", "tell") or "NoRunner" not in str(call.value)
        ):
            yield "answered", str(call)
        if call.outcome is not Ended.OK:
            continue
        if call.op in ("add", "poke") and book[call.value - 1 : call.value] != [call.argument]:
            yield "reply", f"{book} has not as number {call.value} what {call} asked for"
        if call.op == "peek":
            if call.value != book[: len(call.value)]:
                yield "reply", f"{book} does not begin with what {call} saw"
            for other in changes:
                answered = other.op != "tell" and other.outcome is Ended.OK
                if answered and other.ended < call.invoked and other.argument not in call.value:
                    yield "reply", f"{call} does not see {other}"


def _stream(calls: list[Call], requests: list[Request]) -> Found:
    """One attempt after the other, each of which goes on behind what the last has taken."""
    had = -1
    for call in calls:
        value: list[int] = call.value if isinstance(call.value, list) else []
        if value:
            # What a killed consumer has taken is not in its history.
            behind = value[0] <= had + 1 or call.client != calls[0].client
            if not behind or value != list(range(value[0], value[0] + len(value))):
                yield "chunks", f"after {had}: {call}"
            had = value[-1]
        if call.outcome is Ended.OK and value and value[-1] != call.argument - 1:
            yield "lost", f"the end of {call}"
        if call.outcome is Ended.OK and not value and call is calls[0]:
            yield "lost", f"all of {call}"


def _item(calls: list[Call], requests: list[Request]) -> Found:
    for call in calls:
        if call.op == "result" and call.outcome is Ended.FAILED:
            yield "answered", str(call)
    expected = [call.key.partition("/")[2].upper() for call in calls[:1]]
    results = [call.value for call in calls if call.op == "result" and call.outcome is Ended.OK]
    for result in results + [request.result for request in requests if request.exits]:
        if result not in expected:
            yield "reply", f"{result!r} instead of {expected}"


def _steps(requests: Mapping[str, list[Request]], tables: Tables) -> Iterator[tuple[str, Found]]:
    """What steps left behind outside."""
    effects: dict[str, Counter[str]] = defaultdict(Counter)
    for key, step in tables.effects:
        effects[key][step] += 1
    touched: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for key, argument, idempotency in tables.touched:
        touched[key].add((argument, idempotency))
    for key in sorted(effects.keys() | touched.keys() | tables.recorded.keys()):
        yield key, _steps_of(key, requests.get(key, []), effects[key], touched[key], tables)
    for key in requests:
        if key.startswith("Lots/") and key not in touched:
            yield key, iter([("lost", "the run of an item that has its result")])


def _steps_of(
    key: str,
    requests: list[Request],
    effects: Counter[str],
    touched: set[tuple[str, str]],
    tables: Tables,
) -> Found:
    for step, times in effects.items():
        if times > 1:
            yield "effects", f"{step} {times} times"
    if effects.total() != tables.recorded.get(key, 0):
        yield "effects", f"{dict(effects)}, but {tables.recorded.get(key, 0)} in the journal"
    if len(touched) > 1:
        yield "keys", f"{sorted(touched)}"
    for result in (request.result for request in requests):
        expected: set[str] = {"undo"} if result == INTERRUPTED and effects else set()
        if isinstance(result, dict):
            expected = {"first", "last", *(f"add {n}" for n in result["added"])}
            if any(argument != result["drawn"] for argument, _ in touched):
                yield "keys", f"{touched}, but {result['drawn']}"
            if "undo" in effects:
                yield "invented", "the undoing of what succeeded"
        if missing := expected - effects.keys():
            yield "lost", f"the effects {sorted(missing)}"
