"""Logins that may do what ``outlast grants`` prints for them, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from engine.storage.rights import Kind, grants


@contextmanager
def role(dsn: str, *kinds: Kind) -> Iterator[str]:
    """The DSN of a new login with these grants, one after the other; its name is hostile."""
    name, password = f"odd \"';--{uuid4().hex}", uuid4().hex
    with psycopg.connect(dsn, autocommit=True) as connection:
        made = Identifier(name)
        connection.execute(SQL("create role {} login password {}").format(made, Literal(password)))
        try:
            for kind in kinds:
                connection.execute(grants(kind, role=name, schema="engine").encode())
            where = urlsplit(dsn)
            login = f"{quote(name, safe='')}:{password}@{where.hostname}:{where.port}"
            yield where._replace(netloc=login).geturl()
        finally:
            connection.execute(SQL("drop owned by {} cascade").format(made))
            connection.execute(SQL("drop role {}").format(made))
