"""An application that signs a member up; it needs no runner of its own.

OUTLAST_DSN=postgresql://… python examples/signup_client.py
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from engine import Client, Failed, Pending, Succeeded

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.signup import Member, Signup


async def main() -> str:
    async with Client() as client:  # reads OUTLAST_DSN
        grace = Member(name="Grace", email="grace@example.org")
        execution = await client.start(Signup, grace)  # durable once this returns
        match await execution.poll():  # a look, any time, from any process
            case Pending(status):
                print(f"{execution.id} is {status}")
            case Succeeded(value):
                print(f"{execution.id} ended before: {value}")
            case Failed(error):
                print(f"{execution.id} failed: {error}")
            case ended:
                print(f"{execution.id} was ended: {ended.reason}")
        await client.execution(Signup, "grace@example.org").resolve(Signup.confirmed, True)
        return await execution.join(timeout=timedelta(seconds=30))


if __name__ == "__main__":
    print(asyncio.run(main()))
