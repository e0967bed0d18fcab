"""A first workflow: greet a new member, wait days for the confirmation, remind, give up."""

from datetime import timedelta

from pydantic import BaseModel

from engine import Deferred, RetryPolicy, Runner, Workflow, activity


class Member(BaseModel):
    name: str
    email: str


class Signup(Workflow[Member, str]):
    confirmed = Deferred(bool)  # somebody outside will say

    @classmethod
    def key(cls, request: Member) -> str:
        return request.email  # one execution for each address, however often it is started

    async def execute(self, request: Member) -> str:
        await self.send(request.email, f"Hello {request.name}, please confirm")
        for _ in range(2):
            try:
                await self.confirmed.wait(timeout=timedelta(days=3))  # costs no memory
            except TimeoutError:
                await self.send(request.email, "Still there? Please confirm")
            else:
                await self.send(request.email, f"Welcome, {request.name}")
                return "member"
        return "gone"

    @activity(retry=RetryPolicy(attempts=10), timeout=timedelta(seconds=30))
    async def send(self, email: str, message: str) -> None:
        """A step: tried ten times at most, and never run again once its end is stored."""
        print(f"to {email}: {message}", flush=True)


def runner() -> Runner:
    """What ``outlast run signup:runner`` serves."""
    return Runner().register(Signup())
