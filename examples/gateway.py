"""A payment provider in small: it moves money when told to, and remembers under which key.

It stands for something outside: its ledger is a SQLite file that knows nothing of the engine, so
that anybody can check with it afterwards what was really charged. Like a real one it is slow to
answer, is out of order now and then, and answers a repeated idempotency key with the first payment.
"""

import asyncio
import os
import sqlite3
import zlib
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

LEDGER = """
create table if not exists calls (
    id integer primary key, key text, pid integer, answered integer not null default 0);
create table if not exists charges (
    payment integer primary key, key text, reference text, cents integer);
"""


class GatewayDown(Exception):
    """No money moved; try again."""


class Gateway:
    """One provider, used by any number of processes that are given the same ledger."""

    def __init__(self, ledger: Path, *, answers_after: timedelta = timedelta(0)) -> None:
        self.ledger = ledger
        self._answers_after = answers_after.total_seconds()
        with self._write() as ledger_file:
            ledger_file.executescript(LEDGER)

    async def charge(self, cents: int, *, reference: str, idempotency_key: str) -> str:
        """Charge, unless that was done under this key before; the payment's number."""
        call, payment = await asyncio.to_thread(self._charge, cents, reference, idempotency_key)
        await asyncio.sleep(self._answers_after)  # the money has moved, the answer is on its way
        await asyncio.to_thread(self._answer, call)
        return f"payment-{payment}"

    def _charge(self, cents: int, reference: str, key: str) -> tuple[int | None, int]:
        with self._write() as ledger:
            first = ledger.execute("select 1 from calls where key = ?", [key]).fetchone() is None
            down = first and zlib.crc32(key.encode()) % 8 == 0  # one key in eight, the first time
            insert = "insert into calls (key, pid, answered) values (?, ?, ?)"
            call = ledger.execute(insert, [key, os.getpid(), down]).lastrowid
            if not down:
                found = ledger.execute("select payment from charges where key = ?", [key])
                if row := found.fetchone():
                    return call, row[0]
                insert = "insert into charges (key, reference, cents) values (?, ?, ?)"
                return call, ledger.execute(insert, [key, reference, cents]).lastrowid or 0
        raise GatewayDown("503 Service Unavailable")

    def _answer(self, call: int | None) -> None:
        with self._write() as ledger:
            ledger.execute("update calls set answered = 1 where id = ?", [call])

    def read(self, query: str, *args: object) -> list[tuple[object, ...]]:
        """Look into the ledger."""
        with closing(sqlite3.connect(self.ledger, timeout=10)) as ledger:
            return ledger.execute(query, args).fetchall()

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.ledger, timeout=10, isolation_level=None)) as ledger:
            ledger.execute("begin immediate")
            yield ledger
            if ledger.in_transaction:
                ledger.execute("commit")
