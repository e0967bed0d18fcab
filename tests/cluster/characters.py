"""Entities of the behaviour suite's runners that have a character: they linger, count, forget, die.

They stand on the stage of ``tests.cluster.cast``, beside its actors.
"""

import asyncio
import os
import signal
from datetime import timedelta

from pydantic import BaseModel

from engine import EntityDefect, State, Uninterruptible, rpc
from tests.cluster.cast import Actor, Annexed, Stage


class Lingering(Actor):
    """Takes leave at a second gate when it is interrupted; ignores interrupts in three ways."""

    @rpc
    async def linger(self, gate: str, leave: str = "") -> int:
        try:
            return await self.wait_at(gate)
        except asyncio.CancelledError:
            await self.stage.note(self.entity_id, "cleans up")
            if leave:
                await self.stage.pass_gate(leave)
            raise

    @rpc(uninterruptible=Uninterruptible.CLIENT)
    async def ignore_clients(self, gate: str) -> int:
        return await self.linger(gate)

    @rpc(uninterruptible=Uninterruptible.SERVER)
    async def ignore_the_server(self, gate: str) -> int:
        return await self.linger(gate)

    @rpc(uninterruptible=Uninterruptible.BOTH)
    async def ignore_all(self, gate: str) -> int:
        return await self.linger(gate)


class Clinging(Actor):
    """Asks nobody for leave when it is interrupted: one of a group that no runner serves."""

    @rpc
    async def cling(self, gate: str) -> int:
        try:
            return await self.wait_at(gate)
        except asyncio.CancelledError:
            await self.stage.note(self.entity_id, "asks nobody")
            await self.stage.client.entity(Annexed, self.entity_id).echo("")
            raise


class Adding:
    """Handlers for whoever wants them."""

    @rpc
    async def add(self, numbers: list[int]) -> int:
        return sum(numbers)


class Signing:
    """These need a stage."""

    stage: Stage

    @rpc(name="sign-off")
    async def sign(self, who: str) -> None:
        await self.stage.note(who, "signed")


class Desk(Adding, Signing, Actor):
    """Has handlers of its own and of two groups, and one that goes on with a group's."""

    @rpc
    async def add(self, numbers: list[int]) -> int:
        await self.stage.note(self.entity_id, f"adds {numbers}")
        return await super().add(numbers)


class Sum(BaseModel):
    total: int = 0
    added: list[str] = []


class Account(Actor):
    """Keeps a sum, and what it is the sum of."""

    state = State(Sum)

    @rpc
    async def add(self, what: str, number: int) -> int:
        self.state.total += number
        self.state.added.append(what)
        return self.state.total

    @rpc
    async def add_and_wait(self, what: str, number: int, gate: str) -> int:
        """Wait at the gate with the change made and not saved yet."""
        await self.add(what, number)
        await self.wait_at(gate)
        return self.state.total

    @rpc
    async def add_and_refuse(self, what: str, number: int) -> None:
        await self.add(what, number)
        raise LookupError("after the change")

    @rpc(readonly=True)
    async def read(self) -> Sum:
        return self.state

    @rpc(readonly=True)
    async def read_at(self, gate: str) -> Sum:
        await self.wait_at(gate)
        return self.state

    @rpc(readonly=True)
    async def cheat(self, what: str, number: int) -> int:
        return await self.add(what, number)


class Booth(Actor):
    """One is inside, one may wait outside, in memory; what is said to it is not stored."""

    mailbox_capacity = 1

    @rpc(persisted=False)
    async def say(self, what: str) -> str:
        return what

    @rpc(persisted=False)
    async def occupy(self, gate: str) -> int:
        return await self.wait_at(gate)


class Hall(Actor):
    """Where many may wait. A mailbox that is full for a moment has the inbox looked at anew."""

    @rpc(persisted=False)
    async def say(self, what: str) -> str:
        return what


class Courier(Actor):
    """Tells what came with a message, its own or that of one it sends."""

    @rpc
    async def told(self) -> tuple[str | None, dict[str, str]]:
        return self.trace, dict(self.headers)

    @rpc
    async def relayed(self, to: str) -> tuple[str | None, dict[str, str]]:
        return await self.stage.client.entity(Courier, to).told()


class Fleeting(Actor):
    """Remembers things for as long as it is in memory, which may end at any time."""

    max_idle = timedelta(milliseconds=200)

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.remembered: tuple[str, ...] = ()

    @rpc
    async def remember(self, what: str) -> list[str]:
        self.remembered += (what,)
        return list(self.remembered)

    @rpc
    async def stay(self, on: bool) -> None:
        self.keep_alive(on)

    @rpc
    async def break_down(self, times: int) -> list[str]:
        """Be of no use any more, so many times."""
        await self.stage.note(self.entity_id, "breaks down")
        if await self.stage.times(self.entity_id, "breaks down") <= times:
            raise EntityDefect("what it remembers is wrong")
        return list(self.remembered)

    @rpc
    async def explode(self, safe: str) -> str:
        """As a fault in a library of C would, until the gate is open: nothing of the process runs
        any more."""
        await self.stage.note(self.entity_id, "explodes")
        if not await self.stage.is_open(safe):
            os.kill(os.getpid(), signal.SIGKILL)
        return "safe now"


class Adrift(Fleeting):
    """The same, in any number at once."""

    concurrency = 0


def latecomer(name: str) -> type[Actor]:
    """A type that no runner serves until it is told to."""
    return type(name, (Actor,), {"name": name})


CHARACTERS: list[type[Actor]] = [
    *(Lingering, Clinging, Desk, Account, Booth, Hall, Courier, Fleeting, Adrift),
]
