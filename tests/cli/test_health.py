"""What a runner says of itself, and what its port answers, while things go wrong."""

import asyncio
import json
import re
import signal
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from engine import ConfigurationError, Runner, Settings
from engine.storage.rights import Kind
from tests.chaos.proxy import proxy
from tests.cli.orders import Slow
from tests.cli.terminal import do, ended
from tests.cli.watched import running
from tests.eventually import eventually
from tests.roles import role

FAST = {"heartbeat_interval": timedelta(seconds=0.1), "time_to_live": timedelta(seconds=0.6)}


def settings(dsn: str, **more: object) -> Settings:
    return Settings(**{"dsn": dsn, "shards_per_group": 4, "health_port": 0, **FAST, **more})


def port_in(text: str) -> int:
    found = re.search(r"health is served at http://127\.0\.0\.1:(\d+)", text)
    assert found, text
    return int(found[1])


async def ask(port: int, request: bytes | str) -> tuple[int, dict[str, object]]:
    """The status and body of the answer; 0 when the connection was closed without one."""
    if isinstance(request, str):
        request = f"GET {request} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        answer = await reader.read()
    except ConnectionError:
        return 0, {}
    finally:
        writer.close()
    if not answer:
        return 0, {}
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head or request.startswith(b"HEAD")
    return int(head.split()[1]), json.loads(body) if body else {}


async def test_a_runner_that_serves_is_live_and_ready(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner = Runner(settings(dsn)).register(Slow())
    assert not runner.health().ready
    async with runner:
        await eventually(lambda: len(runner.epochs) == 4 and runner.health().notifications)
        port = port_in(caplog.text)
        live, ready = await ask(port, "/live"), await ask(port, "/ready?full=1")

        assert (live[0], ready[0]) == (200, 200)
        moves = {name: ready[1][name] for name in ("beat_age", "lag")}
        assert ready[1] == live[1] | moves
        assert ready[1] == runner.health().as_json() | moves
        assert ready[1]["why"] == "it serves"
        assert (ready[1]["shards"], ready[1]["lanes"]) == (4, 2)
        assert await ask(port, b"HEAD /ready HTTP/1.1\r\n\r\n") == (200, {})
    assert runner.health().why.startswith("it drains")
    with pytest.raises(ConnectionError):
        await ask(port, "/live")


async def test_how_late_the_event_loop_is_is_seen_in_its_health_and_in_the_register(
    dsn: str,
) -> None:
    late, patient = timedelta(seconds=0.5), settings(dsn, time_to_live=timedelta(seconds=30))

    async def told() -> bool:
        return (await do("runners", dsn=dsn)).lines[0]["lag"] > late.total_seconds()

    async with Runner(patient).register(Slow()) as runner:
        await eventually(lambda: runner.health().ready)
        time.sleep(1.1)  # asked twice a second, it answers one of these questions late
        await eventually(lambda: runner.health().lag > late)
        await eventually(told)


async def test_whatever_is_sent_to_the_port_it_goes_on_answering(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with Runner(settings(dsn)).register(Slow()):
        port = port_in(caplog.text)
        for request, status in {
            b"GET / HTTP/1.1\r\n\r\n": 404,
            b"GET /live/../etc HTTP/1.1\r\n\r\n": 404,
            b"POST /live HTTP/1.1\r\n\r\n": 405,
            b"GET /live\r\n\r\n": 400,
            b"GET /live HTTP/9\r\n\r\n": 400,
            b"\xff\x00\xfe \x80 HTTP/1.1\r\n\r\n": 400,
            b"\r\n\r\n": 400,
            b"\x16\x03\x01 a TLS hello\r\n\r\n": 400,
            b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n": 400,
        }.items():
            answered, _ = await ask(port, request)
            # What is too long may be cut off while it is still being sent.
            assert answered in ({status, 0} if len(request) > 9000 else {status}), request[:40]
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
        refused, _ = await ask(port, "/live")
        silent[0][1].close()

        async def answers() -> bool:
            return (await ask(port, "/live"))[0] == 200

        assert refused == 0
        await eventually(answers)
        for _, writer in silent:
            writer.close()


async def test_a_port_that_cannot_be_had_is_told(dsn: str) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match="OUTLAST_HEALTH_PORT"):
            async with Runner(settings(dsn, health_port=port)).register(Slow()):
                pytest.fail("it began")


async def test_a_server_that_is_frozen_makes_it_unready_until_it_thaws(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    parts = urlsplit(dsn)
    async with proxy(parts.port or 5432) as (network, port):
        through = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
        async with Runner(settings(through)).register(Slow()) as runner:
            await eventually(lambda: runner.health().ready)
            health = port_in(caplog.text)
            for link in network.links:
                link.hold()

            await eventually(lambda: not runner.health().ready)
            status, body = await ask(health, "/ready")
            assert (status, str(body["why"])[:14]) == (503, "its heartbeats")
            assert (await ask(health, "/live"))[0] == 200

            for link in network.links:
                link.release()
            await eventually(lambda: runner.health().ready, timeout=20)
            assert (await ask(health, "/ready"))[0] == 200


async def test_without_an_open_lane_it_is_not_ready(dsn: str) -> None:
    sql = await asyncpg.connect(dsn)
    try:
        with role(dsn, Kind.WORKER) as login:
            name = unquote(urlsplit(login).username or "").replace('"', '""')
            async with Runner(settings(login)).register(Slow()) as runner:
                await eventually(lambda: runner.health().lanes == 2)
                await sql.execute(f'alter role "{name}" connection limit 0')
                await sql.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name like 'outlast:%:lane-%' and usename = $1",
                    name.replace('""', '"'),
                )
                await eventually(lambda: runner.health().why.startswith("no lane is open"))
                assert not runner.health().ready
                await sql.execute(f'alter role "{name}" connection limit -1')
                await eventually(lambda: runner.health().ready, timeout=20)
    finally:
        await sql.close()


async def test_a_process_that_drains_is_live_and_not_ready(project: Path, dsn: str) -> None:
    with running("run", "orders:app", dsn=dsn, cwd=project, OUTLAST_HEALTH_PORT="0") as runner:
        runner.says("runner serves")
        port = port_in(runner.said)

        async def ready() -> bool:
            return (await ask(port, "/ready"))[0] == 200

        await eventually(ready)
        await do("start", "Held", json.dumps(str(project)), "--key", "h-1", dsn=dsn)
        await eventually((project / "begun").exists)
        runner.process.send_signal(signal.SIGTERM)
        runner.says("runner drains")

        async def drains() -> bool:
            status, body = await ask(port, "/ready")
            return (status, str(body["why"])[:9]) == (503, "it drains")

        await eventually(drains)
        assert (await ask(port, "/live"))[0] == 200
        (project / "end").touch()
        drained = await asyncio.to_thread(ended, runner.process)
    assert drained.code == 0
