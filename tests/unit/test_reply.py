"""Exits and errors come back from their bytes as they were, and other bytes are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import ErrorDetails, InvalidPayload
from engine.core.reply import (
    Defect,
    Exit,
    Failure,
    Interrupted,
    ReplyKind,
    Success,
    Terminated,
    decode_error,
    decode_exit,
    encode_error,
    encode_exit,
)

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(
    plain.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
errors = st.recursive(
    st.builds(ErrorDetails, st.text(), st.text(), st.text(), json_values),
    lambda inner: st.builds(ErrorDetails, st.text(), st.text(), st.text(), json_values, inner),
    max_leaves=4,
)
exits = (
    st.builds(Success, st.binary())
    | st.builds(Failure, errors)
    | st.builds(Interrupted, st.text())
    | st.builds(Terminated, st.text())
    | st.builds(Defect, errors)
)


@given(exit=exits)
def test_an_exit_comes_back_as_it_was(exit: Exit) -> None:
    assert decode_exit(*encode_exit(exit)) == exit


@given(error=errors)
def test_an_error_comes_back_as_it_was(error: ErrorDetails) -> None:
    assert decode_error(encode_error(error)) == error


@given(payload=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_bytes_that_are_no_error_are_refused_and_nothing_else_happens(payload: bytes) -> None:
    for decode in (decode_error, lambda each: decode_exit(ReplyKind.INTERRUPTED, each)):
        try:
            decode(payload)
        except InvalidPayload:
            continue


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"text"',
        b"{}",
        b'{"type": "ValueError"}',
        b'{"type": "A", "message": "b", "cause": {}}',
        b"\xff",
        b"[" * 100_000,
        b'{"type": "A", "message": "b", "cause": ' * 3_000 + b"null" + b"}" * 3_000,
        b"1" * 10_000,
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_a_damaged_error_is_refused(payload: bytes) -> None:
    for kind in (ReplyKind.FAILURE, ReplyKind.DEFECT):
        with pytest.raises(InvalidPayload, match="stored error"):
            decode_exit(kind, payload)


@pytest.mark.parametrize(
    "payload", [b"", b"5", b"null", b'["a"]', b"[" * 100_000, b"\xff\xfe", b"1" * 10_000]
)
def test_a_damaged_interrupt_is_refused(payload: bytes) -> None:
    for kind in (ReplyKind.INTERRUPTED, ReplyKind.TERMINATED):
        with pytest.raises(InvalidPayload, match="stored interrupt"):
            decode_exit(kind, payload)


def test_a_chunk_is_not_an_exit() -> None:
    with pytest.raises(InvalidPayload, match="chunk"):
        decode_exit(ReplyKind.CHUNK, b"1")


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no words for it")


def knot() -> list[object]:
    tied: list[object] = []
    tied.append(tied)
    return tied


def well(depth: int = 100_000) -> object:
    value: object = None
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("details", "stored"),
    [
        ({1}, "{1}"),
        ({"when": b"x"}, {"when": "b'x'"}),
        ({1: 2}, {"1": 2}),
        ({(1, 2): 3}, "details of type dict that JSON has no form for"),
        (float("nan"), "details of type float that JSON has no form for"),
        (Hostile(), "details of type Hostile that JSON has no form for"),
        (knot(), "details of type list that JSON has no form for"),
        (well(), "details of type list that JSON has no form for"),
    ],
    ids=["set", "bytes", "int key", "tuple key", "nan", "hostile", "knot", "well"],
)
def test_details_without_a_json_form_are_put_into_words(details: object, stored: object) -> None:
    error = ErrorDetails("ValueError", "bad", details=details)

    assert decode_error(encode_error(error)).details == stored


def test_a_long_chain_of_causes_is_cut() -> None:
    error = ErrorDetails("ValueError", "the first")
    for number in range(5_000):
        error = ErrorDetails("StepFailed", f"{number}", cause=error)

    stored: ErrorDetails | None = decode_error(encode_error(error))

    length = 0
    while stored is not None:
        stored, length = stored.cause, length + 1
    assert length == 65
