"""How to test a workflow: ``pytest examples/test_signup.py``. See ``docs/testing.md``."""

from datetime import timedelta

import pytest

from engine import NonDeterminism, Succeeded, activity
from engine.testing import (
    Fault,
    TestCluster,
    crash_at_every_step,
    lint_workflows,
    replay,
    stub,
)
from examples.signup import Member, Signup

ADA = Member(name="Ada", email="ada@example.org")


async def test_who_confirms_is_welcomed() -> None:
    sent: list[str] = []

    async def note(email: str, message: str) -> None:
        sent.append(message)

    async with TestCluster(Signup(), stubs=[stub(Signup.send).by(note)]) as cluster:
        execution = await cluster.client.start(Signup, ADA)
        await cluster.advance(timedelta(days=2))
        await execution.resolve(Signup.confirmed, True)
        assert await execution.join() == "member"

    assert sent == ["Hello Ada, please confirm", "Welcome, Ada"]


class Quiet(Signup):
    """A stub by subclass: it keeps the name, and has ``self`` with all that a step has."""

    name = "Signup"

    def __init__(self) -> None:
        self.keys: list[str] = []

    @activity
    async def send(self, email: str, message: str) -> None:
        self.keys.append(self.idempotency_key)


async def test_who_never_answers_is_reminded_twice_and_gone_after_six_days() -> None:
    quiet = Quiet()
    async with TestCluster(quiet) as cluster:
        execution = await cluster.client.start(Signup, ADA)
        await cluster.advance(timedelta(days=6))  # in a few milliseconds
        assert await execution.poll() == Succeeded("gone")

    assert len(set(quiet.keys)) == 3


async def test_a_provider_that_fails_is_tried_again() -> None:
    failures = iter([ConnectionError("busy"), ConnectionError("busy"), None, None])

    def fail_twice(email: str, message: str) -> None:
        error = next(failures)
        if error is not None:
            raise error

    async with TestCluster(Signup(), stubs=[stub(Signup.send).by(fail_twice)]) as cluster:
        execution = await cluster.client.start(Signup, ADA)
        await cluster.advance(timedelta(minutes=5))
        history = await execution.history()

    assert [(event.name, event.attempt) for event in history] == [("send", n) for n in (1, 2, 3)]


async def test_a_lost_write_repeats_the_step_under_the_same_key() -> None:
    quiet = Quiet()
    async with TestCluster(quiet) as cluster:
        cluster.fail_next_flush(Fault.BEFORE_COMMIT)  # the mail is out, its result is lost
        execution = await cluster.client.start(Signup, ADA)
        await execution.resolve(Signup.confirmed, True)
        assert await execution.join() == "member"

    assert len(quiet.keys) == 3
    assert len(set(quiet.keys)) == 2


async def test_a_crash_anywhere_changes_nothing() -> None:
    async for outcome in crash_at_every_step(Quiet(), ADA):
        assert outcome.result == "gone", outcome
        assert len(set(outcome.workflow.keys)) == 3, outcome


class Hasty(Quiet):
    """Signup as somebody changed it, while people are in the middle of it."""

    name = "Signup"

    async def execute(self, request: Member) -> str:
        await self.confirmed.wait()
        await self.send(request.email, f"Welcome, {request.name}")
        return "member"


async def test_a_change_that_does_not_fit_is_found_by_replay() -> None:
    async with TestCluster(Quiet()) as cluster:
        execution = await cluster.client.start(Signup, ADA)
        await cluster.advance(timedelta(days=1))
        history = await execution.history()

    await replay(history, Signup())
    with pytest.raises(NonDeterminism, match=r"step send#1 .* waits for confirmed"):
        await replay(history, Hasty())


def test_its_body_can_be_replayed() -> None:
    assert lint_workflows([Signup()]) == []


async def test_the_same_on_postgres(outlast_dsn: str) -> None:
    async with TestCluster(Quiet(), dsn=outlast_dsn) as cluster:
        execution = await cluster.client.start(Signup, ADA)
        await execution.resolve(Signup.confirmed, True)
        assert await execution.join(timeout=timedelta(seconds=20)) == "member"
