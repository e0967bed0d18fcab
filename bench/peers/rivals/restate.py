"""Restate: a server with a log and a store of its own, which calls the worker over HTTP/2.

The worker's process starts the server and registers itself; the driver calls the server's ingress.
"""

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import hypercorn
import hypercorn.asyncio
import restate

from bench.peers.load import LIMIT, Kind, main

HOME = Path(__file__).parents[3] / ".outlast/peers/restate"
UNLIMITED = 2**31 - 1
CONNECTIONS = 300

service = restate.Service("bench")
workflow = restate.Workflow("waiter")
late: list[float] = []


async def echo(number: int) -> int:
    return number


@service.handler()
async def one_step(context: restate.Context, number: int) -> int:
    return await context.run_typed("echo", echo, number=number)


@service.handler()
async def many_steps(context: restate.Context, count: int) -> int:
    total = 0
    for number in range(count):
        total += await context.run_typed("echo", echo, number=number)
    return total


@service.handler()
async def fan_out(context: restate.Context, count: int) -> int:
    children = [context.service_call(one_step, arg=number) for number in range(count)]
    return sum([await child for child in children])


@service.handler()
async def sleeper(context: restate.Context, seconds: float) -> None:
    due = await context.time() + seconds
    await context.sleep(timedelta(seconds=seconds))
    late.append(time.time() - due)


@service.handler()
async def collect(context: restate.Context, count: int) -> list[float]:
    return late if len(late) >= count else []


@workflow.main()
async def run(context: restate.WorkflowContext, request: int) -> int:
    return await context.promise("go", type_hint=int).value()


@workflow.handler()
async def go(context: restate.WorkflowSharedContext, value: int) -> None:
    await context.promise("go", type_hint=int).resolve(value)


async def work(variant: str, address: str) -> None:
    """The address of a database means nothing to it: its own is said when it is ready."""
    node, ingress, admin, own = (f"127.0.0.1:{_free_port()}" for _ in range(4))
    serving = hypercorn.Config()
    serving.bind = [own]
    serving.h2_max_concurrent_streams = UNLIMITED
    serving.keep_alive_max_requests = UNLIMITED
    serving.keep_alive_timeout = UNLIMITED
    with _server(node, ingress, admin):
        async with asyncio.TaskGroup() as group:
            endpoint = restate.app([service, workflow])
            group.create_task(hypercorn.asyncio.serve(endpoint, serving))
            await _register(f"http://{admin}/deployments", f"http://{own}")
            print("READY", f"http://{ingress}", flush=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _server(node: str, ingress: str, admin: str) -> "subprocess.Popen[bytes]":
    """It ends with its process group."""
    data = HOME / "data"
    shutil.rmtree(data, ignore_errors=True)
    settings = {
        "RESTATE_BASE_DIR": str(data),
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": node,
        "RESTATE_ADVERTISED_HOST": "127.0.0.1",
        "RESTATE_NODE_NAME": "bench",
        "RESTATE_INGRESS__BIND_ADDRESS": ingress,
        "RESTATE_ADMIN__BIND_ADDRESS": admin,
        "RESTATE_LOG_FILTER": "warn",
        "RESTATE_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    (program,) = HOME.glob("node_modules/@restatedev/restate-server-*/bin/restate-server")
    return subprocess.Popen(
        [program, "--no-logo"], env={**os.environ, **settings}, stdout=subprocess.DEVNULL
    )


async def _register(deployments: str, own: str) -> None:
    """As soon as the server takes it, and finds us."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        while True:
            try:
                async with http.post(deployments, json={"uri": own, "force": True}) as answer:
                    if answer.ok:
                        return
            except aiohttp.ClientConnectionError:
                pass  # not yet
            await asyncio.sleep(0.2)


class Restate:
    answers = True

    def __init__(self, http: aiohttp.ClientSession, ingress: str, group: asyncio.TaskGroup) -> None:
        self._http = http
        self._ingress = ingress
        self._group = group

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        return await asyncio.gather(*(self._call(f"bench/{kind}", each) for each in requests))

    async def start_waiting(self) -> tuple[str, "asyncio.Task[Any]"]:
        key = secrets.token_hex(8)
        return key, self._group.create_task(self._call(f"waiter/{key}/run", 0))

    async def resume(self, waiting: tuple[str, "asyncio.Task[Any]"], value: int) -> Any:
        key, running = waiting
        await self._call(f"waiter/{key}/go", value)
        return await running

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        """Sent, not called: a call keeps its connection."""
        sent = (self._call("bench/sleeper/send", seconds) for _ in range(count))
        await asyncio.gather(*sent)
        while not (result := await self._call("bench/collect", count)):
            await asyncio.sleep(0.3)
        return result

    async def _call(self, path: str, request: object) -> Any:
        async with self._http.post(f"{self._ingress}/{path}", json=request) as answer:
            body = await answer.read()
            answer.raise_for_status()
            return json.loads(body) if body else None


@asynccontextmanager
async def connect(variant: str, ingress: str) -> AsyncGenerator[Restate]:
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    patience = aiohttp.ClientTimeout(total=LIMIT)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=patience) as http,
        asyncio.TaskGroup() as group,
    ):
        yield Restate(http, ingress, group)


if __name__ == "__main__":
    main(work, connect)
