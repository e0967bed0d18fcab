"""What the linter may find in a workflow's body: each kind with code, sentence and fix."""

from dataclasses import dataclass
from enum import Enum


class Rule(Enum):
    """A kind of finding: code, what is wrong, what to do."""

    CLOCK = "OUT101", "reads the system's clock, which a replay reads anew", "use self.now()"
    RANDOM = (
        "OUT102",
        "draws random numbers, which a replay draws anew",
        "use self.random(), or draw them in an @activity",
    )
    UUID = "OUT103", "makes an id that a replay makes anew", "use self.uuid()"
    IO = (
        "OUT104",
        "reaches outside of the body, where a replay finds something else",
        "do it in an @activity (or a @transaction)",
    )
    THREADS = (
        "OUT105",
        "hands work to a thread or process, which the body's loop cannot replay",
        "do it in an @activity; one without 'async' runs in a thread",
    )
    BLOCKING = "OUT106", "blocks the whole runner", "use 'await self.sleep(timedelta(...))'"
    SET_ORDER = (
        "OUT107",
        "goes through a set, whose order differs from process to process",
        "go through sorted(...) of it, or keep a list or dict",
    )
    COMPLETION = (
        "OUT108",
        "starts what it is given in the order of a set",
        "create the tasks one by one, and use asyncio.wait() or a TaskGroup",
    )
    NOT_AWAITED = "OUT109", "is called but not awaited, so it does not run", "put 'await' before it"
    SHARED = (
        "OUT110",
        "changes what all executions of this process share and a replay finds changed already",
        "keep it in self, or in an @activity's database",
    )
    HASH = (
        "OUT111",
        "differs from process to process",
        "use hashlib, or compare the values themselves",
    )
    PROTOTYPE = (
        "OUT112",
        "changes what was made once for all executions of this process, by __init__ or the class",
        "make it at the top of execute(), before its first await",
    )

    @property
    def code(self) -> str:
        return self.value[0]

    @property
    def sentence(self) -> str:
        return self.value[1]

    @property
    def fix(self) -> str:
        return self.value[2]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place in a workflow's body that a replay may not be able to repeat."""

    file: str
    line: int
    column: int
    code: str
    what: str
    """The code in question, as in ``time.time()``."""
    message: str
    fix: str
    where: str
    """The function it is in, as in ``Fulfil.execute``."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.code} {self.what} {self.message}: {self.fix} (in {self.where})"
