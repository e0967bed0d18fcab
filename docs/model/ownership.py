"""Who may write for a shard: a model of acquiring, writing, handing over and taking over.

Three incarnations of runners want one shard, in which one request waits. To answer it, its owner
runs a user transaction and then flushes the exit. Processes freeze, wake, die and lose their
connections at any line; a statement that was sent may commit until its session has ended.

Run ``python docs/model/ownership.py``: the rules as they are hold in every state, and each rule
that is left out leads to a state that breaks a guarantee, shown with the way there.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from checker import Model, Verdict, check

RUNNERS = (0, 1, 2)
NOBODY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules that ownership rests on; each may be left out. The names are those of the sections
    and hazards of the design that ask for it."""

    pen_is_the_lock: bool = True
    """Writes go through the session that holds the lock, so they end with it."""
    lock_before_epoch: bool = True
    """The lock is tried, however dead the owner is said to be."""
    epoch_before_read: bool = True
    """The inbox and the journal are read after the epoch was taken, not before."""
    fence_is_read: bool = True
    """A user transaction reads the shard's epoch and owner before it does anything."""
    fence_is_held: bool = True
    """... and keeps that row locked until it ends."""
    journal_row_is_unique: bool = True
    """A transaction inserts its journal row, and rolls back if there is one."""
    generations: bool = True
    """What was not written when a lane lost its session is never sent on the next one."""
    dead_take_nothing: bool = True
    """A lock or an epoch is taken only with one's own row in the register alive."""
    dead_lose_their_sessions: bool = True
    """Whoever buries a runner ends all of its sessions."""
    dead_own_nothing: bool = True
    """... and takes its name off its shards, so that no transaction of it is fenced any more."""


class Life(IntEnum):
    UNBORN = 0
    UP = 1
    FROZEN = 2
    STUCK = 3
    """Frozen for good."""
    GONE = 4


class Phase(IntEnum):
    IDLE = 0
    LOCKED = 1
    OWNING = 2
    WORKING = 3


class Transaction(IntEnum):
    """A user transaction as its session has it."""

    NONE = 0
    BEGUN = 1
    FENCED = 2
    COMMITTING = 3
    COMMITTED = 4


class Runner(NamedTuple):
    """An incarnation, with its sessions as the server sees them."""

    life: Life = Life.UNBORN
    phase: Phase = Phase.IDLE
    epoch: int = 0
    knows_effect: bool = False
    lane: bool = False
    """The session of its lane, and with ``cut`` one that the process has given up for lost."""
    cut: bool = False
    flushing: int = 0
    """The epoch of a flush that was sent on the lane's session; 0: none. ``lost`` is one that was
    on a session that was cut, ``kept`` one that the process has still in memory."""
    lost: int = 0
    kept: int = 0
    transaction: Transaction = Transaction.NONE
    of: int = 0
    """The epoch that the transaction was begun under."""
    dead: bool = False
    """The register says so. ``buried``: and its sessions have been ended."""
    buried: bool = False


class State(NamedTuple):
    runners: tuple[Runner, ...]
    lock: int = NOBODY
    """Whose lane holds the advisory lock; 10 more for one whose session was cut."""
    epoch: int = 0
    owner: int = NOBODY
    read: int = 0
    """The youngest epoch that has read what older ones left."""
    effects: int = 0
    exits: int = 0
    late: bool = False
    """Something became visible after a younger epoch had read."""
    faults: int = 2


CUT = 10


class Ownership:
    """The actions, under these rules."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def model(self, faults: int = 2) -> Model[State]:
        up = Runner(life=Life.UP, lane=True)
        first = State(runners=(up, up, Runner()), faults=faults)
        return Model(first=first, steps=self.steps, broken=broken, finished=finished, alike=alike)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for n in RUNNERS:
            for action, following in self._of(state, n, state.runners[n]):
                yield f"runner {n}: {action}", renumbered(following)

    def _of(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        if me.life is Life.UP:
            yield from self._process(state, n, me)
        yield from self._server(state, n, me)
        yield from self._fate(state, n, me)

    # --- what a process does ---------------------------------------------------------------------

    def _process(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        yield from self._acquire(state, n, me)
        if me.phase is Phase.WORKING:
            yield from self._work(state, n, me)
            yield from self._release(state, n, me)
        if me.transaction is Transaction.BEGUN:
            yield from self._fence(state, n, me)
        if me.transaction is Transaction.FENCED:
            yield "sends COMMIT", put(state, n, me._replace(transaction=Transaction.COMMITTING))
        if me.transaction is Transaction.COMMITTED:
            told = me._replace(transaction=Transaction.NONE, of=0, knows_effect=True)
            yield "hears of its commit", put(state, n, told)
        if not me.lane and me.phase is Phase.IDLE:
            yield "opens a lane", put(state, n, me._replace(lane=True))
        if not me.lane and me.phase is not Phase.IDLE:
            idle = me._replace(phase=Phase.IDLE, epoch=0, knows_effect=False)
            yield "notices that its lane has ended", put(state, n, idle)
        if me.kept and me.lane and not me.flushing:
            sent = me._replace(flushing=me.kept, kept=0)
            yield "sends again what the lost session had", put(state, n, sent)
        yield from self._judge(state, n, me)

    def _acquire(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        rules = self.rules
        if me.phase is Phase.IDLE and me.lane and not me.kept and state.exits == 0:
            free = state.lock == NOBODY and not (rules.dead_take_nothing and me.dead)
            gone = state.owner != NOBODY and state.runners[state.owner].dead
            if free or (not rules.lock_before_epoch and gone):
                knows = not rules.epoch_before_read and state.effects > 0
                locked = put(state, n, me._replace(phase=Phase.LOCKED, knows_effect=knows))
                read = state.read if rules.epoch_before_read else state.epoch + 1
                yield "takes the lock", locked._replace(lock=n, read=read)
        if me.phase is Phase.LOCKED and me.lane:
            if rules.dead_take_nothing and me.dead:
                yield (
                    "gives the lock back",
                    unlocked(put(state, n, me._replace(phase=Phase.IDLE)), n),
                )
            elif not any(holds_fence(each, rules) for each in state.runners):
                epoch = state.epoch + 1
                taken = put(state, n, me._replace(phase=Phase.OWNING, epoch=epoch))
                yield f"takes epoch {epoch}", taken._replace(epoch=epoch, owner=n)
        if me.phase is Phase.OWNING and me.lane:
            knows = state.effects > 0 if rules.epoch_before_read else me.knows_effect
            reading = put(state, n, me._replace(phase=Phase.WORKING, knows_effect=knows))
            yield "reads", reading._replace(read=max(state.read, me.epoch))

    def _work(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        if not me.knows_effect and me.transaction is Transaction.NONE:
            begun = me._replace(transaction=Transaction.BEGUN, of=me.epoch)
            yield "begins its transaction", put(state, n, begun)
        if me.knows_effect and me.lane and not me.flushing and state.exits == 0:
            yield "sends the exit", put(state, n, me._replace(flushing=me.epoch))

    def _fence(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        fits = (state.epoch, state.owner) == (me.of, n)
        if fits or not self.rules.fence_is_read:
            yield "is fenced", put(state, n, me._replace(transaction=Transaction.FENCED))
        else:
            yield "rolls back", put(state, n, me._replace(transaction=Transaction.NONE, of=0))

    def _release(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        if me.lane and not me.flushing and me.transaction is Transaction.NONE:
            idle = me._replace(phase=Phase.IDLE, epoch=0, knows_effect=False)
            yield "hands its shard over", unlocked(put(state, n, idle), n)

    def _judge(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        for other in RUNNERS:
            peer = state.runners[other]
            silent = peer.life in (Life.FROZEN, Life.STUCK, Life.GONE)
            if other == n or me.dead:
                continue
            if silent and not peer.dead:
                yield f"declares runner {other} dead", put(state, other, peer._replace(dead=True))
            if peer.dead and not peer.buried:
                buried = put(state, other, peer._replace(buried=True))
                if self.rules.dead_lose_their_sessions:
                    ended = without_sessions(buried.runners[other])
                    buried = freed(put(buried, other, ended), other)
                if self.rules.dead_own_nothing and buried.owner == other:
                    buried = buried._replace(owner=NOBODY)
                yield f"buries runner {other}", buried

    # --- what happens in the server --------------------------------------------------------------

    def _server(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        if me.flushing and (me.lane or not self.rules.pen_is_the_lock):
            wrote = put(state, n, me._replace(flushing=0))
            yield "the server commits a flush", visible(wrote, me.flushing)._replace(exits=1)
        if me.lost and (me.cut or not self.rules.pen_is_the_lock):
            wrote = put(state, n, me._replace(lost=0))
            yield (
                "the server commits a flush on the lost session",
                visible(wrote, me.lost)._replace(exits=1),
            )
        if me.transaction is Transaction.COMMITTING:
            wrote = put(state, n, me._replace(transaction=Transaction.COMMITTED))
            if state.effects == 0 or not self.rules.journal_row_is_unique:
                wrote = visible(wrote, me.of)._replace(effects=state.effects + 1)
            yield "the server commits the transaction", wrote
        if me.cut:
            pen = self.rules.pen_is_the_lock
            ended = me._replace(cut=False, lost=0 if pen else me.lost)
            rest = state._replace(lock=NOBODY) if state.lock == n + CUT else state
            yield "the server ends the lost session", put(rest, n, ended)
        if me.life is Life.GONE and (me.lane or me.transaction is not Transaction.NONE):
            pen = self.rules.pen_is_the_lock
            ended = without_sessions(me)._replace(flushing=0 if pen else me.flushing)
            yield "the server ends the sessions", freed(put(state, n, ended), n)

    # --- what nobody chose -----------------------------------------------------------------------

    def _fate(self, state: State, n: int, me: Runner) -> Iterator[tuple[str, State]]:
        up, worse = me.life is Life.UP, state._replace(faults=state.faults - 1)
        if state.faults and up:
            yield "freezes", put(worse, n, me._replace(life=Life.FROZEN))
            yield "freezes for good", put(worse, n, me._replace(life=Life.STUCK))
            yield "is killed", put(worse, n, me._replace(life=Life.GONE, kept=0))
        if state.faults and up and me.lane:
            ended = me._replace(lane=False, flushing=0)
            yield "loses its lane and does not know", unlocked(put(worse, n, ended), n)
            if not me.cut:
                yield "gives its lane up for lost", self._cut(worse, n, me)
        if state.faults and up and me.transaction is Transaction.COMMITTED:
            unheard = me._replace(transaction=Transaction.NONE, of=0)
            yield "loses the answer to its COMMIT", put(worse, n, unheard)
        if me.life is Life.FROZEN:
            yield "wakes", put(state, n, me._replace(life=Life.UP))
        if up and me.dead:
            yield "finds itself dead and ends", put(state, n, me._replace(life=Life.GONE, kept=0))
        if me.life is Life.UNBORN and any(each.life >= Life.STUCK for each in state.runners):
            yield "is started", put(state, n, me._replace(life=Life.UP, lane=True))

    def _cut(self, state: State, n: int, me: Runner) -> State:
        """The process drops all that went with the session; the server has not noticed yet."""
        lost = me._replace(
            phase=Phase.IDLE,
            epoch=0,
            knows_effect=False,
            lane=False,
            cut=True,
            flushing=0,
            lost=me.flushing,
            kept=0 if self.rules.generations else me.flushing,
        )
        lock = n + CUT if state.lock == n else state.lock
        return put(state, n, lost)._replace(lock=lock)


def put(state: State, n: int, runner: Runner) -> State:
    return state._replace(runners=(*state.runners[:n], runner, *state.runners[n + 1 :]))


def unlocked(state: State, n: int) -> State:
    return state._replace(lock=NOBODY) if state.lock == n else state


def freed(state: State, n: int) -> State:
    return state._replace(lock=NOBODY) if state.lock in (n, n + CUT) else state


def without_sessions(runner: Runner) -> Runner:
    """A frozen process has not noticed: its ``phase`` stays, but nothing it sends arrives."""
    return runner._replace(
        lane=False, cut=False, flushing=0, lost=0, transaction=Transaction.NONE, of=0
    )


def holds_fence(runner: Runner, rules: Rules) -> bool:
    held = (Transaction.FENCED, Transaction.COMMITTING)
    return rules.fence_is_held and rules.fence_is_read and runner.transaction in held


def renumbered(state: State) -> State:
    """The same with the least epochs that compare alike, so that there are finitely many states."""
    epochs = {0, state.epoch, state.read}
    for each in state.runners:
        epochs.update((each.epoch, each.flushing, each.lost, each.kept, each.of))
    if len(epochs) == max(epochs) + 1:
        return state
    rank = {epoch: n for n, epoch in enumerate(sorted(epochs))}
    runners = tuple(
        each._replace(
            epoch=rank[each.epoch],
            flushing=rank[each.flushing],
            lost=rank[each.lost],
            kept=rank[each.kept],
            of=rank[each.of],
        )
        for each in state.runners
    )
    return state._replace(runners=runners, epoch=rank[state.epoch], read=rank[state.read])


def alike(state: State) -> Hashable:
    """A state without the runners' numbers, by which no rule goes."""
    lock, owner = state.lock, state.owner
    runners = sorted(
        (runner, lock == n, lock == n + CUT, owner == n) for n, runner in enumerate(state.runners)
    )
    return (*runners, state._replace(runners=(), lock=NOBODY, owner=NOBODY))


def visible(state: State, epoch: int) -> State:
    """A write of this epoch has become visible."""
    return state._replace(late=state.late or epoch < state.read)


def broken(state: State) -> str | None:
    if state.effects > 1:
        return "G6: the transaction took effect twice"
    if state.late:
        return "G1: a write became visible after the next owner had read"
    return None


def finished(state: State) -> bool:
    return state.exits == 1


FAULTS = {
    "pen_is_the_lock": 1,
    "lock_before_epoch": 1,
    "epoch_before_read": 1,
    "fence_is_read": 1,
    "fence_is_held": 1,
    "journal_row_is_unique": 1,
    "generations": 1,
    "dead_take_nothing": 2,
    "dead_lose_their_sessions": 1,
    "dead_own_nothing": 2,
}
"""Every rule, with as many faults as it takes to miss it."""


def verdict(without: str | None = None) -> Verdict:
    """What becomes of the guarantees under all the rules and two faults, or without one of them."""
    if without is None:
        return check(Ownership(Rules()).model())
    return check(Ownership(replace(Rules(), **{without: False})).model(FAULTS[without]))


if __name__ == "__main__":
    for name in (None, *FAULTS):
        found = verdict(name)
        print(f"{'all rules' if name is None else 'without ' + name}: {found.states} states")
        print(found.finding or "nothing is broken", end="\n\n")
