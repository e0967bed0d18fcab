"""Each promise has a history that breaks it, and the checker finds that; of a good one it says
nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import NotFound, StorageUnavailable
from tests.chaos.checker import INTERRUPTED, Request, Tables, Timer, check
from tests.chaos.commits import Row
from tests.chaos.history import Call, Ended, Recorder, read
from tests.chaos.promises import PROMISES

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
TOLD: dict[str, Any] = {"heard": [1, 2], "added": [5, 6], "value": 9, "drawn": "d", "booked": 1}


def ok(key: str, op: str, at: float, argument: object = None, value: object = None) -> Call:
    """A call that took half a second."""
    return Call(
        key=key,
        op=op,
        argument=argument,
        invoked=at,
        ended=at + 0.5,
        outcome=Ended.OK,
        value=value,
    )


CALLS = [
    ok("Life/a", "start", 1, value=10),
    ok("Life/a", "signal", 2, 1),
    ok("Life/a", "signal", 3, 2),
    ok("Life/a", "update", 4, 5, 5),
    ok("Life/a", "update", 5, 6, 11),
    ok("Life/a", "resolve", 6, 9, True),
    ok("Life/a", "join", 7, value=TOLD),
    ok("Life/b", "start", 1, value=11),
    ok("Life/b", "interrupt", 2),
    ok("Life/b", "join", 3, value=INTERRUPTED),
    ok("Account/x", "add", 1, "m", 1),
    ok("Account/x", "tell", 2, "n"),
    ok("Account/x", "poke", 3, "o", 3),
    ok("Account/x", "peek", 4, "", ["m", "n", "o"]),
    Call(key="Account/x", op="add", argument="p", invoked=4),
    ok("Stream/s", "stream", 1, 3, [0, 1, 2]),
    ok("Lots/i", "submit", 1, value=30),
    ok("Lots/i", "result", 2, value="I"),
    Call(key="Lots/k", op="submit", argument=None, invoked=3),  # which was never stored
]
ROWS = [
    Row(what="shard", shard=1, owner="r1", epoch=1),
    Row(what="journal", request=10, number=1, shard=1, writer="r1", owner="r1", epoch=1),
    # A transaction that overtook a row of the lane.
    Row(
        what="journal",
        request=10,
        number=3,
        shard=1,
        writer="r1",
        role="user",
        owner="r1",
        epoch=1,
    ),
    Row(what="journal", request=10, number=2, shard=1, writer="r1", owner="r1", epoch=1),
    # A call that left while a transaction was committing.
    Row(what="journal", request=10, number=5, kind=5, shard=1, writer="r1", owner="r1", epoch=1),
    Row(
        what="journal",
        request=10,
        number=4,
        shard=1,
        writer="r1",
        role="user",
        owner="r1",
        epoch=1,
    ),
    Row(what="shard", shard=1, owner="r2", epoch=2),
    Row(what="reply", request=20, number=0, shard=1, writer="r2", owner="r2", epoch=2),
    Row(what="reply", request=20, number=1, kind=1, shard=1, writer="r2", owner="r2", epoch=2),
    Row(what="item", request=30, kind=1, shard=1, writer="r1", owner="r2", epoch=2),
]
GOOD = Tables(
    requests=[
        Request(id=10, key="Life/a", result=TOLD),
        Request(id=11, key="Life/b", result=INTERRUPTED),
        Request(id=20, key="Stream/s"),
        Request(id=30, key="Lots/i", result="I"),
    ],
    rows=ROWS,
    timers=[Timer(key="Life/a", due=NOON, at=NOON)],
    books={"Account/x": ["m", "n", "o"]},
    effects=[("Life/a", step) for step in ("first", "last", "add 5", "add 6")]
    + [("Life/b", "first"), ("Life/b", "undo")],
    recorded={"Life/a": 4, "Life/b": 2},
    touched=[("Life/a", "d", "k1"), ("Lots/i", "process", "k2")],
)


def instead(op: str, key: str = "Life/a", **change: object) -> list[Call]:
    """The good history, in which the last such call is another."""
    place = max(n for n, call in enumerate(CALLS) if (call.key, call.op) == (key, op))
    return [*CALLS[:place], replace(CALLS[place], **change), *CALLS[place + 1 :]]  # type: ignore[arg-type]


def told(**change: object) -> tuple[list[Call], Tables]:
    """An execution that ended with something else, of which all are told alike."""
    result = TOLD | change
    requests = [replace(GOOD.requests[0], result=result), *GOOD.requests[1:]]
    return instead("join", value=result), replace(GOOD, requests=requests)


def row(**change: object) -> Row:
    """One more row, of the last epoch's owner."""
    made = Row(what="journal", request=10, number=9, shard=1, writer="r2", owner="r2", epoch=2)
    return replace(made, **change)  # type: ignore[arg-type]


def with_rows(*rows: Row) -> tuple[list[Call], Tables]:
    return CALLS, replace(GOOD, rows=[*ROWS, *rows])


def without(*keys: str) -> Tables:
    return replace(GOOD, requests=[each for each in GOOD.requests if each.key not in keys])


def with_request(request: Request) -> Tables:
    return replace(GOOD, requests=[*GOOD.requests, request])


def book(*names: str) -> tuple[list[Call], Tables]:
    """Another account, about whose replies nobody knows anything."""
    calls = [replace(call, op="tell") for call in CALLS if call.key == "Account/x"][:3]
    others = [call for call in CALLS if call.key != "Account/x"]
    return [*others, *calls], replace(GOOD, books={"Account/x": list(names)})


BAD: dict[str, tuple[str, str, tuple[list[Call], Tables]]] = {
    "a start is refused": (
        "answered",
        "Life/b",
        (instead("start", "Life/b", outcome=Ended.FAILED), GOOD),
    ),
    "a signal to what was started is refused": (
        "answered",
        "Life/a",
        (instead("signal", outcome=Ended.FAILED), told(heard=[1])[1]),
    ),
    "an item fails": (
        "answered",
        "Lots/i",
        (instead("result", "Lots/i", outcome=Ended.FAILED), GOOD),
    ),
    "an element is left out": (
        "chunks",
        "Stream/s",
        (instead("stream", "Stream/s", value=[0, 2]), GOOD),
    ),
    "an element comes twice": (
        "chunks",
        "Stream/s",
        (instead("stream", "Stream/s", value=[0, 1, 1, 2]), GOOD),
    ),
    "a second attempt begins too late": (
        "chunks",
        "Stream/s",
        (
            [
                *instead("stream", "Stream/s", value=[0], outcome=Ended.UNKNOWN),
                ok("Stream/s", "stream", 2, 3, [2]),
            ],
            GOOD,
        ),
    ),
    "a stored chunk is missing": (
        "chunks",
        "request 21",
        with_rows(row(what="reply", request=21), row(what="reply", request=21, number=11, kind=1)),
    ),
    "a chunk comes after the exit": (
        "chunks",
        "request 20",
        with_rows(row(what="reply", request=20, number=2)),
    ),
    "the end of a stream is lost": (
        "lost",
        "Stream/s",
        (instead("stream", "Stream/s", value=[0, 1]), GOOD),
    ),
    "a timer fires early": (
        "early",
        "Life/a",
        (
            CALLS,
            replace(
                GOOD, timers=[Timer(key="Life/a", due=NOON, at=NOON - timedelta(milliseconds=1))]
            ),
        ),
    ),
    "an effect is there twice": (
        "effects",
        "Life/a",
        (CALLS, replace(GOOD, effects=[*GOOD.effects, ("Life/a", "first")])),
    ),
    "an effect has no journal row": (
        "effects",
        "Life/a",
        (CALLS, replace(GOOD, recorded={**GOOD.recorded, "Life/a": 3})),
    ),
    "a journal row has no effect": (
        "effects",
        "Life/a",
        (CALLS, replace(GOOD, effects=GOOD.effects[1:])),
    ),
    "an activity never ran": (
        "lost",
        "Life/a",
        (CALLS, replace(GOOD, touched=GOOD.touched[1:])),
    ),
    "nothing came after a timer": ("lost", "Life/a", (CALLS, replace(GOOD, timers=[]))),
    "no journal row was noted": (
        "lost",
        "Life/a",
        (CALLS, replace(GOOD, rows=[each for each in ROWS if each.what != "journal"])),
    ),
    "something is left": ("ended", "a row", (CALLS, replace(GOOD, left=["a row"]))),
    "an epoch goes back": ("epochs", "shard 1", with_rows(row(what="shard", epoch=1, owner="r3"))),
    "an epoch has two incarnations": (
        "epochs",
        "shard 1",
        with_rows(row(what="shard", epoch=2, owner="r3")),
    ),
    "a former owner writes": ("fenced", "request 10", with_rows(row(writer="r1"))),
    "an owner that was overtaken writes as if nothing were": (
        "fenced",
        "request 10",
        with_rows(row(writer="r1", owner="r1", epoch=1)),
    ),
    "nobody started it": (
        "invented",
        "Life/z",
        (CALLS, with_request(Request(id=12, key="Life/z", result=INTERRUPTED))),
    ),
    "a signal comes from nowhere": ("invented", "Life/a", told(heard=[1, 2, 3])),
    "a value comes from nowhere": ("invented", "Life/a", told(value=8)),
    "an entry comes from nowhere": ("invented", "Account/x", book("m", "n", "o", "z")),
    "an interrupt comes from nowhere": (
        "invented",
        "Life/a",
        (
            instead("join", value=INTERRUPTED),
            replace(
                GOOD,
                requests=[replace(GOOD.requests[0], result=INTERRUPTED), *GOOD.requests[1:]],
            ),
        ),
    ),
    "what was refused happened": (
        "invented",
        "Account/x",
        (instead("poke", "Account/x", outcome=Ended.FAILED, value="NoRunner"), GOOD),
    ),
    "a row comes before what a replay has seen": (
        "journal",
        "request 10",
        with_rows(row(number=2)),
    ),
    "a lane's row comes before another of it": (
        "journal",
        "request 12",
        with_rows(row(request=12, number=2), row(request=12, number=1)),
    ),
    "an event comes while a transaction commits": (
        "journal",
        "request 12",
        with_rows(row(request=12, number=2), row(request=12, number=1, role="user")),
    ),
    "a row comes twice": ("journal", "request 10", with_rows(row(number=3, role="user"))),
    "a row changes": ("journal", "request 10", with_rows(row(what="changed", number=1))),
    "an attempt has another key": (
        "keys",
        "Life/a",
        (CALLS, replace(GOOD, touched=[*GOOD.touched, ("Life/a", "d", "k3")])),
    ),
    "a replay draws another number": (
        "keys",
        "Life/a",
        (CALLS, replace(GOOD, touched=[("Life/a", "e", "k1"), GOOD.touched[1]])),
    ),
    "a start is lost": ("lost", "Life/b", (CALLS, without("Life/b"))),
    "a submitted item is lost": ("lost", "Lots/i", (CALLS, without("Lots/i"))),
    "a stream is lost": ("lost", "Stream/s", (CALLS, without("Stream/s"))),
    "a signal is lost": ("lost", "Life/a", told(heard=[2])),
    "an update is lost": ("lost", "Life/a", told(added=[6])),
    "a state change is lost": ("lost", "Account/x", book("m", "o")),
    "an interrupt is lost": (
        "lost",
        "Life/a",
        ([*CALLS, ok("Life/a", "interrupt", 5)], GOOD),
    ),
    "an effect is lost": (
        "lost",
        "Life/a",
        (CALLS, replace(GOOD, effects=GOOD.effects[1:], recorded={**GOOD.recorded, "Life/a": 3})),
    ),
    "an undoing is lost": (
        "lost",
        "Life/b",
        (CALLS, replace(GOOD, effects=GOOD.effects[:-1], recorded={**GOOD.recorded, "Life/b": 1})),
    ),
    "the run of an item is lost": (
        "lost",
        "Lots/i",
        (CALLS, replace(GOOD, touched=GOOD.touched[:1])),
    ),
    "a request has no exit": (
        "one exit",
        "Life/b",
        (
            CALLS,
            replace(
                without("Life/b"),
                requests=[
                    *without("Life/b").requests,
                    Request(id=11, key="Life/b", exits=0, result=INTERRUPTED),
                ],
            ),
        ),
    ),
    "a message has two exits": (
        "one exit",
        "message",
        (CALLS, with_request(Request(id=12, key="message", exits=2))),
    ),
    "a second exit is stored": (
        "one exit",
        "request 20",
        with_rows(row(what="reply", request=20, number=2, kind=1)),
    ),
    "a key names two requests": (
        "one key",
        "Life/b",
        (CALLS, with_request(Request(id=12, key="Life/b", result=INTERRUPTED))),
    ),
    "a second start gets another request": (
        "one key",
        "Life/b",
        ([*CALLS, ok("Life/b", "start", 2, value=12)], GOOD),
    ),
    "another payload is let pass": (
        "one key",
        "Life/b",
        ([*CALLS, ok("Life/b", "start another", 2, value=11)], GOOD),
    ),
    "signals change places": ("order", "Life/a", told(heard=[2, 1])),
    "messages change places": ("order", "Account/x", book("n", "m", "o")),
    "a joiner gets another result": ("reply", "Life/a", (instead("join", value=INTERRUPTED), GOOD)),
    "an execution fails": (
        "reply",
        "Life/b",
        (
            instead("join", "Life/b", value="failure"),
            replace(
                without("Life/b"),
                requests=[
                    *without("Life/b").requests,
                    Request(id=11, key="Life/b", result="failure"),
                ],
            ),
        ),
    ),
    "an update has another answer": ("reply", "Life/a", (instead("update", value=12), GOOD)),
    "two resolutions win": (
        "reply",
        "Life/a",
        ([*CALLS, ok("Life/a", "resolve", 6, 8, True)], GOOD),
    ),
    "an entity's reply is another": (
        "reply",
        "Account/x",
        (instead("poke", "Account/x", value=2), GOOD),
    ),
    "a reader sees what is not saved": (
        "reply",
        "Account/x",
        (instead("peek", "Account/x", value=["m", "n", "o", "q"]), GOOD),
    ),
    "a reader does not see what was answered": (
        "reply",
        "Account/x",
        (instead("peek", "Account/x", value=["m"]), GOOD),
    ),
    "an item has another result": (
        "reply",
        "Lots/i",
        (instead("result", "Lots/i", value="J"), GOOD),
    ),
    "an execution's own call is handled twice": ("reply", "Life/a", told(booked=2)),
    "a signal is heard twice": ("twice", "Life/a", told(heard=[1, 2, 2])),
    "an unknown change is there twice": (
        "twice",
        "Account/x",
        (CALLS, replace(GOOD, books={"Account/x": ["m", "n", "o", "p", "p"]})),
    ),
}


def test_a_good_history_is_let_pass() -> None:
    assert check(CALLS, GOOD) == []


def test_what_is_unknown_may_have_happened() -> None:
    assert check(CALLS, replace(GOOD, books={"Account/x": ["m", "n", "o", "p"]})) == []


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_is_found(name: str) -> None:
    broken, key, (calls, tables) = BAD[name]
    found = check(calls, tables)
    assert (broken, key) in {(each.promise, each.key) for each in found}, [*map(str, found)]
    assert {each.key for each in found} == {key}, [*map(str, found)]


def test_every_promise_is_broken_by_some_history() -> None:
    assert {broken for broken, _, _ in BAD.values()} == PROMISES.keys()


def test_calls_are_known_refused_or_unknown_also_when_the_process_dies(tmp_path: Path) -> None:
    path, left = tmp_path / "calls", tmp_path / "left"
    recorder = Recorder(path, "c")
    with recorder.call("k", "good") as noted:
        noted.value = 1
    with recorder.call("k", "refused"):
        raise NotFound("nobody")
    with recorder.call("k", "unknown"):
        raise StorageUnavailable("gone")
    with recorder.call("k", "dying"):
        left.write_bytes(path.read_bytes() + b'{"nth": 9, "key"')
    recorder.close()

    calls = read([left])

    assert [(call.op, call.outcome) for call in calls] == [
        ("good", Ended.OK),
        ("refused", Ended.FAILED),
        ("unknown", Ended.UNKNOWN),
        ("dying", Ended.UNKNOWN),
    ]
    assert calls[0].value == 1
    assert calls[0].invoked <= calls[0].ended < calls[3].ended == float("inf")
