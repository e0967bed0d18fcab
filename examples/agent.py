"""An agent: a language model that calls tools until it has an answer, some only if a person agrees.

``python examples/agent.py`` lets a scripted model compare two pages of the documentation.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel

from engine import RetryPolicy, StepFailed, Workflow, activity, update

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import ROOT, run_script, serving

TURNS = 20


class ToolCall(BaseModel):
    id: str
    tool: str
    argument: str


class Message(BaseModel):
    role: Literal["user", "model", "tool"]
    text: str = ""
    calls: list[ToolCall] = []


class Model(Protocol):
    async def reply(self, messages: Sequence[Message], *, key: str) -> Message: ...


Tool = Callable[[str], Awaitable[str]]
Ask = Callable[[ToolCall], Awaitable[None]]


class Agent(Workflow[str, str]):
    """The model's answer to a question. ``guarded`` tools run once a person has agreed."""

    def __init__(
        self, model: Model, tools: Mapping[str, Tool], *, guarded: Sequence[str], ask: Ask
    ) -> None:
        self.model, self.tools, self.guarded, self.ask = model, tools, guarded, ask

    async def execute(self, request: str) -> str:
        self.agreed: dict[str, bool | None] = {}  # None: somebody is asked
        messages = [Message(role="user", text=request)]
        for _ in range(TURNS):
            turn = await self.think(messages)
            messages.append(turn)
            if not turn.calls:
                return turn.text
            messages += await asyncio.gather(*map(self.answer, turn.calls))
        raise RuntimeError(f"no answer after {TURNS} turns")

    async def answer(self, call: ToolCall) -> Message:
        """What the model is told of a call; it is told of failures too."""
        try:
            if call.tool not in self.guarded or await self.may_use(call):
                return Message(role="tool", text=f"{call.tool}: {await self.use(call)}")
            return Message(role="tool", text=f"{call.tool}: the user does not want that")
        except StepFailed as error:
            return Message(role="tool", text=f"{call.tool} failed: {error.error.message}")

    async def may_use(self, call: ToolCall) -> bool:
        self.agreed[call.id] = None
        await self.ask_person(call)
        await self.wait_until(lambda: self.agreed[call.id] is not None)
        return bool(self.agreed[call.id])

    @activity(retry=RetryPolicy(attempts=8), timeout=timedelta(minutes=5))
    async def think(self, messages: list[Message]) -> Message:
        return await self.model.reply(messages, key=self.idempotency_key)

    @activity(retry=RetryPolicy(attempts=2), timeout=timedelta(minutes=5))
    async def use(self, call: ToolCall) -> str:
        if call.tool not in self.tools:
            raise LookupError(f"there is no such tool; there are {', '.join(self.tools)}")
        return await self.tools[call.tool](call.argument)

    @activity
    async def ask_person(self, call: ToolCall) -> None:
        await self.ask(call)

    @update
    def agree(self, call: str, yes: bool) -> None:
        self.agreed[call] = yes

    @agree.validator
    def is_asked(self, call: str, yes: bool) -> None:
        if self.agreed.get(call, yes) is not None:
            raise LookupError(f"nobody is asked about {call}")


class Scripted:
    """A model that says what is written, turn by turn; ``{0}`` is what the first tool told it."""

    def __init__(self, *turns: Message) -> None:
        self.turns = turns

    async def reply(self, messages: Sequence[Message], *, key: str) -> Message:
        turn = self.turns[sum(each.role == "model" for each in messages)]
        told = [each.text for each in messages if each.role == "tool"]
        return turn.model_copy(update={"text": turn.text.format(*told)})


def calling(*calls: tuple[str, str]) -> Message:
    """A turn in which the model calls these tools at once."""
    made = [ToolCall(id=f"{tool}({text})", tool=tool, argument=text) for tool, text in calls]
    return Message(role="model", calls=made)


async def count_words(page: str) -> str:
    text = await asyncio.to_thread((ROOT / "docs" / page).read_text)
    return f"{page} has {len(text.split())} words"


async def main() -> int:
    script = Scripted(
        calling(("words", "glossary.md"), ("words", "testing.md"), ("words", "lost.md")),
        calling(("publish", "the glossary is longer")),
        Message(role="model", text="I published it, since\n  {0}\n  {1}\n  {2}"),
    )
    published: list[str] = []
    asked: asyncio.Queue[ToolCall] = asyncio.Queue()

    async def publish(text: str) -> str:
        published.append(text)
        return "done"

    tools: dict[str, Tool] = {"words": count_words, "publish": publish}
    agent = Agent(script, tools, guarded=["publish"], ask=asked.put)
    async with serving("agent", agent) as client:
        execution = await client.start(Agent, "Which page is longer?")
        call = await asked.get()
        print(f"May it {call.tool} {call.argument!r}? Yes.")
        await execution.update(Agent.agree, call.id, True)
        print(await execution.join())
    print(published)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
