"""Whatever is decoded may be anything: a value, or an error that says so, and nothing else.

``pytest tests/unit/test_fuzz.py --hypothesis-profile=full`` tries many more.
"""

import base64
import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from engine import ConfigurationError, InvalidPayload, Settings
from engine.cluster.letter import Malformed, read_order, read_reply, read_request
from engine.core.codec import ValueCodec
from engine.core.ids import ShardId, Snowflake
from engine.core.reply import ReplyKind, decode_error, decode_exit
from engine.core.seal import MARK, Codecs, unreadable
from engine.encryption import AesGcm
from engine.history import read_histories
from engine.storage.bell import parse_bell
from engine.storage.protocol import PostKind, Received
from engine.workflow.token import StepToken, completion_of
from tests.cli.terminal import outlast

NOWHERE = "postgresql://127.0.0.1:1/x"
UNFORESEEN = "--debug shows where"
DEEP = 100_000
FEW = settings(max_examples=settings().max_examples // 3)
"""Of what is slow, under each profile."""
PRIMITIVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    PRIMITIVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
HOSTILE = [
    b"",
    b"\0",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"9" * DEEP,
    b"1e999",
    b'"\\ud800"',
    b"\xff\xfe",
    b"\xef\xbb\xbf1",
    b'"' + b"x" * DEEP,
    MARK,
    MARK + b"\1",
    MARK + b"\1\xff",
]
PAYLOADS = (
    st.sampled_from(HOSTILE)
    | st.binary()
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary().map(lambda rest: MARK + rest)
)


class Order(BaseModel):
    id: str
    lines: list["Order"] = []
    at: datetime | None = None


CODECS: list[ValueCodec[Any]] = [
    ValueCodec(kind, what="it")
    for kind in (int, str, Order, dict[str, Any], object, float | None, list[int], list[Order])
]
LARGE = [
    b"[" * 2**20,
    b'{"a":' * 2**18,
    b"[" + b"{}," * 2**18 + b"1]",
    b"[" + b'"x",' * 2**18 + b"1]",
    b"{" + b",".join(b'"%d":""' % number for number in range(2**16)) + b"}",
    b"9" * 2**20,
    b'"' + b"x" * 2**20 + b'"',
    b"\xff" * 2**20,
]
"""A megabyte of what takes most in memory, or is deepest."""


@given(PAYLOADS)
@FEW
def test_a_payload_is_a_value_of_its_type_or_invalid(payload: bytes) -> None:
    for codec in CODECS:
        with suppress(InvalidPayload):
            codec.decode(payload)


BOUNDED = """
import resource
from engine import InvalidPayload
from engine.core.reply import ReplyKind, decode_error, decode_exit
from engine.history import read_histories
from engine.workflow.token import StepToken
from tests.unit.test_fuzz import CODECS, LARGE

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 160 * 2**20,) * 2)
for payload in LARGE:
    text = payload.decode(errors="replace")
    for decode in (
        *(codec.decode for codec in CODECS),
        decode_error,
        lambda payload: decode_exit(ReplyKind.FAILURE, payload),
        lambda _: StepToken.parse(text),
        lambda _: list(read_histories([text])),
    ):
        try:
            decode(payload)
        except InvalidPayload as error:
            assert len(str(error)) < 10_000
print("bounded")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_what_does_not_fit_takes_memory_in_proportion_to_its_size() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "bounded\n", done.stderr[-2000:]


@given(st.sampled_from(ReplyKind), PAYLOADS)
def test_a_reply_is_one_or_invalid(kind: ReplyKind, payload: bytes) -> None:
    with suppress(InvalidPayload):
        decode_exit(kind, payload)
    with suppress(InvalidPayload):
        str(decode_error(payload))


@given(st.binary(max_size=40), st.data())
async def test_a_frame_that_was_changed_is_never_another_value(
    value: bytes, data: st.DataObject
) -> None:
    if value.startswith(MARK):
        return
    codecs = Codecs([AesGcm({"a": b"k" * 32, "b": b"l" * 32})])
    stored = await codecs.seal(value, "place", 1)
    at = data.draw(st.integers(0, len(stored) - 1))
    changed = bytearray(stored)
    changed[at] ^= data.draw(st.integers(1, 255))
    cut = stored[:at]

    for frame in (bytes(changed), cut):
        assert await codecs.open(frame, "place", 1) == frame, "it is left as it is stored"
        unreadable(frame)
    assert await codecs.open(stored, "place", 2) == stored
    assert await codecs.open(stored, "place", 1) == value


@given(PAYLOADS)
async def test_a_frame_of_anything_is_left_as_it_is_stored(payload: bytes) -> None:
    assert await Codecs([AesGcm({"a": b"k" * 32})]).open(payload, "place") == payload
    told = unreadable(payload)
    assert told is None or len(told) < 1000


@given(
    st.text()
    | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode())
    | VALUES.map(lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode())
    | st.tuples(*[PRIMITIVES] * 7).map(
        lambda parts: base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()
    )
)
@example(base64.urlsafe_b64encode(b"[" * DEEP).decode())
@example(base64.urlsafe_b64encode(b'["g","w","\\ud800",1,"s",0,1]').decode())
@example(base64.urlsafe_b64encode(b'["g","w","i",' + b"9" * 5000 + b',"s",0,1]').decode())
@example("\ud800" * 4)
def test_a_token_is_one_or_invalid(text: str) -> None:
    token = None
    with suppress(InvalidPayload):
        token = StepToken.parse(text)
    if token is None:
        return
    assert StepToken.parse(str(token)) == token
    found = completion_of(token.tag(failed=True))
    assert found is not None
    assert (found.run, found.name, found.failed) == (token.run, token.name, True)


@given(st.text() | st.text("0123456789.:٣").map(lambda rest: "complete:" + rest))
@example("complete:" + "9" * 5000 + ".1.1.x")
def test_a_tag_is_of_a_completion_or_not(tag: str) -> None:
    completion_of(tag)


@given(st.text() | st.from_regex(r"[srat]:[0-9:,\-]{0,40}", fullmatch=True) | PRIMITIVES)
@example("r:" + ",".join(["9" * 19] * 390))
@example("s:" + "1:1," * 1990 + "1:1")
def test_a_notification_says_something_within_bounds_or_nothing(payload: object) -> None:
    bell = parse_bell(payload)
    if bell is not None:
        assert all(0 <= id < 1 << 63 for id in (*bell.replies, *bell.acks))
        assert all(abs(group) < 10**10 and 0 <= n < 10**5 for group, n in bell.shards)


@given(st.sampled_from(PostKind), st.binary() | st.binary().map(lambda rest: b"\1\0\0\0" + rest))
@example(PostKind.REQUEST, b"\1\0\0\0\xff\xff\xff\xff" + b"[" * DEEP)
def test_a_volatile_message_is_one_or_malformed(kind: PostKind, body: bytes) -> None:
    received = Received(kind=kind, shard=ShardId("default", 1), request_id=Snowflake(1), body=body)
    for read in (read_order, read_reply):
        with suppress(Malformed):
            read(received)
    with suppress(Malformed):
        read_request(received, lambda _: 300)


HEAD: dict[str, object] = {
    "outlast": 1,
    "workflow": "Slow",
    "id": "s-1",
    "request_id": "1",
    "shard": ["default", 1],
    "status": "running",
    "version": 1,
    "run": 1,
    "created_at": "2025-06-01T12:00:00+00:00",
    "started_at": "2025-06-01T12:00:00+00:00",
    "finished_at": None,
    "headers": {},
    "request": 0.5,
}
ROW: dict[str, object] = {
    "run": 1,
    "position": 1,
    "kind": "step",
    "name": "work",
    "ordinal": 0,
    "attempt": 1,
    "outcome": "ok",
    "at": "2025-06-01T12:00:01+00:00",
    "started_at": None,
    "due_at": None,
    "source": None,
    "digest": "0",
    "payload": "done",
}
ODD = VALUES | st.sampled_from(
    [10**9, 2**31, -1, "2025-06-01", "1e999", "9" * 5000, "step", "UPPER", True, "\ud800"]
)


@st.composite
def histories(draw: st.DrawFn) -> str:
    """A history with some of its fields replaced, removed or added."""
    forms = [dict(HEAD), *(dict(ROW) | {"position": n} for n in range(draw(st.integers(0, 3))))]
    for _ in range(draw(st.integers(0, 3))):
        form = draw(st.sampled_from(forms))
        name = draw(st.sampled_from([*form, "payload_base64"]))
        if draw(st.booleans()):
            form[name] = draw(ODD)
        else:
            form.pop(name, None)
    return "".join(f"{json.dumps(form)}\n" for form in forms)


@given(histories())
@FEW
@example("[" * DEEP)
@example(json.dumps(HEAD | {"run": 2**31 - 1}))
@example(json.dumps(HEAD) + "\n" + json.dumps(ROW).replace('"0"', "1e999"))
@example(json.dumps(HEAD) + "\n" + json.dumps(ROW | {"at": "2025-06-01"}))
def test_an_exported_history_fits_or_not_or_is_told_to_be_none(folder: Path, lines: str) -> None:
    with suppress(InvalidPayload):
        list(read_histories(lines.splitlines()))
    file = folder / "history.jsonl"
    file.write_text(lines, encoding="utf-8", errors="surrogatepass")
    said = outlast("replay", "tests.cli.orders:app", str(file))
    assert said.code in {0, 1, 2}
    assert UNFORESEEN not in said.err
    assert len(said.err) < 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


VARIABLES = sorted(set(Settings.model_fields) - {"codec"})
TEXTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
) | st.sampled_from(
    ["nan", "inf", "-inf", "1e999", "9" * 5000, "-1", "0", "[]", "{}", "P1Y", "never"]
)


@given(st.dictionaries(st.sampled_from(VARIABLES), TEXTS, max_size=3))
def test_settings_of_any_variables_are_settings_or_a_configuration_error(
    values: dict[str, str],
) -> None:
    variables = {f"OUTLAST_{name.upper()}": value for name, value in values.items()}
    with patch.dict(os.environ, variables), suppress(ConfigurationError):
        assert isinstance(Settings().dsn, str)


@given(TEXTS)
@example("..x:y")
@example("os:sep")
@example("x" * 5000 + ":y")
def test_codecs_of_any_name_are_a_configuration_error(name: str) -> None:
    if not name.strip(", \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"):
        return
    with patch.dict(os.environ, {"OUTLAST_CODEC": name}), suppress(ConfigurationError):
        Settings()


COMMANDS = [
    "ls",
    "show",
    "why",
    "history",
    "start",
    "signal",
    "resolve",
    "join",
    "complete",
    "dead",
    "queues",
    "schedules",
    "fork",
    "interrupt",
    "prune",
    "grants",
    "state",
    "entities",
]
OPTIONS = ["--limit", "--json", "--status", "--timeout", "--key", "--at", "--as", "--", "-"]
ARGUMENTS = [
    "-1",
    "1e999",
    "nan",
    "{}",
    "[" * 5000,
    "9" * 5000,
    "a/b/c",
    "%00",
    "\ud800",
    "\x1b[2J",
]
WORDS = st.text(max_size=20) | st.sampled_from([*OPTIONS, *ARGUMENTS])


@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=4))
@FEW
def test_a_command_line_of_anything_ends_with_a_message_and_a_code(
    command: str, words: list[str]
) -> None:
    said = outlast(command, *words, f"--dsn={NOWHERE}")
    assert said.code in {0, 1, 2, 3, 4, 5, 7}
    assert UNFORESEEN not in said.err
    assert "\x1b" not in said.err
    assert said.err or said.out or said.code == 0
