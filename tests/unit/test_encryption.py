"""Codecs: the frame, AES-GCM with its keys and places, and how settings name them."""

import base64
import os

import pytest

from engine import ConfigurationError, Settings
from engine.core.seal import MARK, Codecs, is_sealed, unreadable
from engine.encryption import KEYS, AesGcm, aes_gcm

OLD, NEW = b"o" * 32, b"n" * 32


class Reversed:
    """The smallest codec."""

    number = 100

    async def encode(self, payload: bytes, place: bytes) -> bytes:
        return payload[::-1]

    async def decode(self, payload: bytes, place: bytes) -> bytes:
        return payload[::-1]


def reversing() -> Reversed:
    return Reversed()


def failing() -> Reversed:
    raise RuntimeError("the key is hunter2")


async def test_what_is_encrypted_is_read_with_its_key_at_its_place() -> None:
    codecs = Codecs([AesGcm({"a": OLD})])

    stored = await codecs.seal(b'"cash"', "journal", 1, 2)

    assert is_sealed(stored)
    assert b"cash" not in stored
    assert await codecs.open(stored, "journal", 1, 2) == b'"cash"'
    assert await codecs.seal(b'"cash"', "journal", 1, 2) != stored


async def test_what_was_changed_anywhere_or_put_elsewhere_is_not_read() -> None:
    codecs = Codecs([AesGcm({"a": OLD})])
    stored = await codecs.seal(b'"cash"', "journal", 1, 2)

    assert await codecs.open(stored, "journal", 1, 3) == stored
    assert await codecs.open(stored, "journal", 12) == stored
    for nth in range(5, len(stored)):
        changed = stored[:nth] + bytes((stored[nth] ^ 1,)) + stored[nth + 1 :]
        assert await codecs.open(changed, "journal", 1, 2) == changed
    for end in range(5, len(stored)):
        assert await codecs.open(stored[:end], "journal", 1, 2) == stored[:end]


async def test_an_old_key_reads_and_a_new_one_writes() -> None:
    before = Codecs([AesGcm({"2025": OLD})])
    between = Codecs([AesGcm({"2025": OLD, "2026": NEW})])
    after = Codecs([AesGcm({"2026": NEW, "2025": OLD})])
    one, two = await before.seal(b"1", "x"), await after.seal(b"2", "x")

    assert [await after.open(each, "x") for each in (one, two)] == [b"1", b"2"]
    assert await between.open(two, "x") == b"2"
    assert await before.open(two, "x") == two
    assert "codec 1 with key '2026'" in str(unreadable(two))


async def test_a_process_renews_what_it_encrypts_with() -> None:
    codec = AesGcm({"a": OLD})
    salts = {(await codec.encode(b"", b""))[2:18]}
    salts.add((await codec.encode(b"", b""))[2:18])
    assert len(salts) == 1

    codec._left = 0  # pyright: ignore[reportPrivateUsage]
    salts.add((await codec.encode(b"", b""))[2:18])

    assert len(salts) == 2


async def test_codecs_go_by_number_and_what_none_has_encoded_is_plain() -> None:
    codecs = Codecs([Reversed(), AesGcm({"a": OLD})])
    encrypted = await Codecs([AesGcm({"a": OLD})]).seal(b"[1]", "x")

    assert await codecs.seal(b"abc", "x") == MARK + b"dcba"
    assert [await codecs.open(each, "x") for each in (MARK + b"dcba", encrypted, b"[1]", b"")] == [
        b"abc",
        b"[1]",
        b"[1]",
        b"",
    ]
    assert unreadable(b"[1]") is None
    assert "codec 100, and this process cannot" in str(unreadable(MARK + b"dcba"))


@pytest.mark.parametrize("body", [b"\1", b"\1\xff", b"\1\5ab", b"\1\0", b"\xff" + b"x" * 9])
async def test_a_frame_of_anything_is_left_as_it_is(body: bytes) -> None:
    frame = MARK + body
    assert await Codecs([AesGcm({"a": OLD})]).open(frame, "x") == frame
    assert unreadable(frame)


async def test_why_a_value_could_not_be_decoded_is_logged_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Tells(Reversed):
        async def decode(self, payload: bytes, place: bytes) -> bytes:
            raise ValueError(f"bad: {payload!r}")

    assert await Codecs([Tells()]).open(MARK + b"dterces", "x") == MARK + b"dterces"

    (record,) = caplog.records
    assert "ValueError" in str(vars(record))
    assert "terces" not in str(vars(record))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "needs a key"),
        ({"a": b"short"}, "has 5 bytes, not 32"),
        ({"": OLD}, "the id of an encryption key"),
        ({"é": OLD}, "the id of an encryption key"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused(keys: dict[str, bytes], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        AesGcm(keys)


def test_a_key_is_not_shown() -> None:
    shown = repr(AesGcm({"2026": NEW})) + repr(Settings(codec=AesGcm({"2026": NEW})))

    assert "2026" in shown
    assert "nnnn" not in shown


def test_a_variable_names_the_codec_and_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ",".join(f"{id}={base64.b64encode(os.urandom(32)).decode()}" for id in ("b", "a"))
    monkeypatch.setenv(KEYS, keys)
    monkeypatch.setenv("OUTLAST_CODEC", f"engine.encryption:aes_gcm, {__name__}:reversing")

    encrypts, reverses = Settings().codec

    assert repr(encrypts) == "<AesGcm with keys b, a>"
    assert isinstance(reverses, Reversed)


@pytest.mark.parametrize("keys", ["", "a", "a=%%%", "a=aGVsbG8=", "a={key},a={key}", "={key}"])
def test_keys_that_cannot_be_read_are_refused_and_not_shown(
    keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = base64.b64encode(NEW).decode()
    monkeypatch.setenv(KEYS, keys.format(key=key))

    with pytest.raises(ConfigurationError) as refused:
        aes_gcm()

    assert key not in str(refused.value)


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ("nowhere", "'nowhere' is not module:attribute"),
        ("nowhere:codec", "cannot be imported: No module named 'nowhere'"),
        (f"{__name__}:nothing", "cannot be imported"),
        (f"{__name__}:failing", "raised RuntimeError as it was made"),
        (f"{__name__}:OLD", "bytes is no codec"),
        (7, "int is no codec"),
        (Reversed, "type is no codec"),
        ((Reversed(), Reversed()), "two codecs have the number 100"),
        (type("Zero", (Reversed,), {"number": 0})(), "the number of a codec is 1 to 255, not 0"),
        (type("Text", (Reversed,), {"number": "1"})(), "Text is no codec"),
        (type("Sync", (Reversed,), {"decode": lambda *_: b""})(), "Sync is no codec"),
    ],
)
def test_a_codec_that_cannot_be_one_is_refused(codec: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"codec \(variable OUTLAST_CODEC\)") as refused:
        Settings(codec=codec)

    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


async def test_a_codec_may_pass_on_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, f"a={base64.b64encode(NEW).decode()}")
    codecs = Settings(codec="examples.codecs:compressed").codecs()

    stored = await codecs.seal(b"[" + b"1," * 1000 + b"1]", "x")

    assert stored[:5] == MARK + bytes((100,))
    assert len(stored) < 200
    assert await codecs.open(stored, "x") == b"[" + b"1," * 1000 + b"1]"
    assert await codecs.open(stored, "y") == stored
