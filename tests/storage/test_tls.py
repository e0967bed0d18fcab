"""TLS is what the DSN says, for each of the engine's connections; what does not fit is said."""

import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine import Client, ConfigurationError, Runner, Settings, StorageUnavailable
from engine.storage.migrate import migrate
from engine.storage.postgres import PostgresStorage
from tests.cli.orders import Slow
from tests.cli.terminal import do
from tests.eventually import eventually
from tests.storage.certificates import Authority
from tests.storage.tls_proxy import TlsProxy, tls_proxy


@dataclass(frozen=True, slots=True)
class Server:
    """A server that wants TLS and a client's certificate; its own is of ``localhost``."""

    proxy: TlsProxy
    dsn: str
    folder: Path

    def at(self, *settings: str) -> str:
        return f"{self.dsn}?{'&'.join(settings)}"

    @property
    def trusted(self) -> str:
        return f"sslrootcert={self.folder / 'ca.crt'}"

    @property
    def known(self) -> str:
        """All is as it should be."""
        cert = f"sslcert={self.folder / 'client.crt'}&sslkey={self.folder / 'client.key'}"
        return self.at("sslmode=verify-full", self.trusted, cert)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority("ours")
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "other.crt").write_bytes(Authority("another").certificate)
    authority.sign("localhost").below(folder, "server")
    authority.sign("worker").below(folder, "client")
    authority.sign("worker", password="locked-7").below(folder, "locked")
    return folder


@pytest.fixture
async def encrypted(folder: Path, empty_dsn: str) -> AsyncIterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL  # as PostgreSQL, which then says what it misses
    async with tls_proxy(empty_dsn, context) as (proxy, dsn):
        yield Server(proxy, dsn, folder)


async def test_every_connection_is_encrypted_and_checked(encrypted: Server) -> None:
    settings = Settings(dsn=encrypted.known, shards_per_group=4)
    assert (await do("migrate", dsn=encrypted.known)).code == 0
    async with Runner(settings).register(Slow()), Client(settings) as client:
        assert await client.execute(Slow, 0, key="s-1") == "done"
        assert (await do("show", "s-1", dsn=encrypted.known)).code == 0
        assert (await do("start", "Slow", "0", "--key", "s-2", dsn=encrypted.known)).code == 0
        doctor = await do("doctor", dsn=encrypted.known)
        assert not doctor.err
        needed = {"pool", "lane-0", "lane-1", "listener", "ringer", "registry"}
        await eventually(lambda: encrypted.proxy.roles >= needed)
    assert encrypted.proxy.refused == 0


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (["sslmode=verify-ca", "sslrootcert={folder}/other.crt"], StorageUnavailable, "on TLS"),
        (["sslmode=disable"], StorageUnavailable, "no encryption"),
        (["sslmode=verify-ca", "{trusted}"], StorageUnavailable, "valid client certificate"),
        (["sslmode=verify-ca"], ConfigurationError, "root certificate file"),
        (
            ["sslmode=verify-ca", "sslrootcert={folder}/none.crt"],
            StorageUnavailable,
            r"cannot be read here: sslrootcert=.*none\.crt",
        ),
        (
            ["sslmode=require", "sslcert={folder}/none.crt", "sslkey={folder}/client.key"],
            StorageUnavailable,
            r"cannot be read here: sslcert=.*none\.crt",
        ),
        (["sslmode=sometimes"], ConfigurationError, "`sslmode` parameter must be one of"),
        (
            [
                "sslmode=verify-ca",
                "{trusted}",
                "sslcert={folder}/locked.crt",
                "sslkey={folder}/locked.key",
                "sslpassword=canary-9",
            ],
            StorageUnavailable,
            "on TLS",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_tls_that_cannot_work_is_told_by_all_ways_in(
    encrypted: Server,
    settings: list[str],
    error: type[Exception],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where certificates might be found otherwise
    known = {"folder": encrypted.folder, "trusted": encrypted.trusted}
    dsn = encrypted.at(*(each.format(**known) for each in settings))

    with pytest.raises(error, match=told) as opened:
        async with PostgresStorage(dsn):
            pytest.fail("it was let in")
    with pytest.raises(error, match=told) as migrated:
        await migrate(dsn)
    ended = await do("ls", dsn=dsn)

    assert ended.code in {2, 7}
    assert re.search(told, ended.err)
    for text in (str(opened.value), str(migrated.value), ended.err):
        assert "canary" not in text
        assert "is it running" not in text


async def test_a_certificate_of_another_host_is_refused(encrypted: Server) -> None:
    with pytest.raises(StorageUnavailable, match=r"on TLS .*127\.0\.0\.1"):
        async with PostgresStorage(encrypted.known.replace("localhost", "127.0.0.1")):
            pytest.fail("it was let in")


async def test_a_key_with_a_password_is_read(encrypted: Server) -> None:
    cert = f"sslcert={encrypted.folder / 'locked.crt'}&sslkey={encrypted.folder / 'locked.key'}"
    await migrate(
        encrypted.at("sslmode=verify-full", encrypted.trusted, cert, "sslpassword=locked-7")
    )
