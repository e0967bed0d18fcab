"""Values and calls come back from their bytes as they were, or are refused by field."""

import dataclasses
import enum
import json
import math
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field

from engine.core.codec import Signature, ValueCodec, digest, same_json
from engine.core.errors import ConfigurationError, InvalidPayload


class Line(BaseModel):
    sku: str
    count: Annotated[int, Field(gt=0)] = 1


class Order(BaseModel):
    id: str
    lines: list[Line] = []


class Parcel(BaseModel):
    """Named differently outside, and with a value of its own making."""

    model_config = ConfigDict(extra="forbid")
    weight: float = Field(alias="weightInGrams")
    label: str = Field(validation_alias="zplLabel", serialization_alias="label_out", default="")

    @computed_field
    @property
    def heavy(self) -> bool:
        return self.weight > 1000


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Everything:
    colour: Colour
    when: datetime
    price: Decimal
    id: UUID
    wait: timedelta
    text: bytes
    pair: tuple[int, str]
    set: set[int]
    maybe: int | None = None


EVERYTHING = Everything(
    Colour.RED,
    datetime(2025, 1, 1, 12, tzinfo=UTC),
    Decimal("1.10"),
    UUID(int=5),
    timedelta(seconds=1.5),
    b"abc",
    (1, "x"),
    {3},
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def knot() -> list[object]:
    tied: list[object] = []
    tied.append(tied)
    return tied


def well() -> object:
    value: object = None
    for _ in range(100_000):
        value = [value]
    return value


# --- values ---------------------------------------------------------------------------------------


@given(value=json_values)
def test_any_json_value_comes_back_as_it_was(value: object) -> None:
    codec = ValueCodec[Any](Any, what="a value")

    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 5),
        (str, "ä ☃ \0"),
        (type(None), None),
        (float, 0.1),
        (Order, Order(id="o-1", lines=[Line(sku="s", count=2)])),
        (Parcel, Parcel(weightInGrams=2000, zplLabel="^XA")),
        (list[Order | None], [Order(id="o-1"), None]),
        (Everything, EVERYTHING),
    ],
    ids=str,
)
def test_a_typed_value_comes_back_as_it_was(annotation: object, value: object) -> None:
    codec = ValueCodec[Any](annotation, what="a value")

    payload, settled = codec.settle(value)

    assert codec.decode(payload) == settled == value
    assert type(settled) is type(value)
    json.loads(payload)


def test_what_settles_is_what_a_replay_decodes() -> None:
    codec = ValueCodec[Any](Any, what="a value")

    payload, settled = codec.settle({1: (Colour.RED, Line(sku="s"))})

    assert settled == codec.decode(payload) == {"1": ["red", {"sku": "s", "count": 1}]}


@pytest.mark.parametrize(
    ("annotation", "value"), [(int, True), (float, 5), (int, Colour), (str, b"x")]
)
def test_a_settled_value_is_never_of_another_type_than_its_replay(
    annotation: object, value: object
) -> None:
    codec = ValueCodec[Any](annotation, what="a value")

    try:
        payload, settled = codec.settle(value)
    except InvalidPayload:
        return

    assert type(settled) is type(codec.decode(payload))


@pytest.mark.parametrize(
    "value",
    [
        object(),
        "\ud800",
        {"deep": ["\udfff"]},
        b"\xff",
        knot(),
        well(),
        lambda: 1,
        {object(): 1},
        math.nan,
        math.inf,
        -math.inf,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_json_form_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidPayload, match=r"^the result of charge cannot be encoded: \S"):
        ValueCodec[Any](Any, what="the result of charge").encode(value)


def test_a_number_json_does_not_have_is_refused_before_it_becomes_null() -> None:
    with pytest.raises(InvalidPayload, match="JSON has no nan"):
        ValueCodec(float, what="the result of weigh").settle(math.nan)


def test_a_value_of_another_type_than_annotated_is_refused_with_its_field() -> None:
    codec = ValueCodec[Any](dict[str, int], what="the result of count")

    with pytest.raises(InvalidPayload, match=r"Expected `int`.*'oops'.*annotate it"):
        codec.encode({"a": "oops"})


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"id": 5}', "id: "),
        (b'{"id": "o", "lines": [{"sku": "s"}, {"sku": "s", "count": 0}]}', "lines.1.count: "),
        (b"{}", "id: Field required"),
        (b"[]", "value: "),
        (b"", "value: Invalid JSON"),
        (b'{"id": "\xff"}', "value: Invalid JSON"),
        (b'{"id": "\\ud800"}', "value: Invalid JSON"),
        (b"[" * 100_000, "value: Invalid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "value: Invalid JSON"),
        (b"1" * 100_000, "value: Invalid JSON"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_bytes_that_do_not_validate_are_refused_with_the_field(payload: bytes, field: str) -> None:
    with pytest.raises(InvalidPayload, match=f"^the request does not validate: .*{field}"):
        ValueCodec(Order, what="the request").decode(payload)


@given(payload=st.binary(max_size=50))
def test_no_bytes_raise_anything_but_invalid_payload(payload: bytes) -> None:
    for annotation in (Any, Order, float, Everything):
        try:
            ValueCodec[Any](annotation, what="a value").decode(payload)
        except InvalidPayload:
            continue


def test_a_python_value_is_validated_into_its_type() -> None:
    codec = ValueCodec(Order, what="the request")

    assert codec.validate({"id": "o", "lines": [{"sku": "s"}]}).lines[0].count == 1
    with pytest.raises(InvalidPayload, match=r"lines\.0\.count"):
        codec.validate({"id": "o", "lines": [{"sku": "s", "count": -1}]})


def test_a_model_may_be_given_by_its_names_or_by_its_aliases() -> None:
    codec = ValueCodec(Parcel, what="a parcel")

    by_alias = codec.decode(b'{"weightInGrams": 5, "zplLabel": "z"}')

    assert by_alias == codec.decode(b'{"weight": 5, "label": "z"}')


def test_a_type_that_json_cannot_carry_is_refused_at_definition() -> None:
    class Plain: ...

    with pytest.raises(ConfigurationError, match=r"the result of x .* pydantic models"):
        ValueCodec(Plain, what="the result of x")


# --- calls ----------------------------------------------------------------------------------------


def defaults(a: int, b: str = "b", *, c: float = 1.5) -> object:
    return a, b, c


def positional(a: int, b: int = 2, /, *, c: int = 3) -> object:
    return a, b, c


def spread(a: int, *rest: int, key: str = "k", **words: Line) -> object:
    return a, rest, key, words


def words(a: int, /, **words: int) -> object:
    return a, words


def awkward(args: int, model_config: int, copy: int = 1, _x: int = 2) -> object:
    return args, model_config, copy, _x


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (defaults, (1,), {}),
        (defaults, (1, "x"), {"c": 2.0}),
        (defaults, (), {"b": "x", "a": 1}),
        (positional, (1,), {"c": 4}),
        (positional, (1, 5), {}),
        (spread, (1,), {}),
        (spread, (1, 2, 3), {"key": "x", "other": Line(sku="s")}),
        (words, (1,), {"a": 2, "words": 3}),
        (awkward, (1, 2), {"_x": 3}),
    ],
)
def test_a_call_comes_back_as_it_was(
    function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    signature = Signature(function, what="f", skip=0)

    for payload in (signature.encode(args, kwargs), signature.validated(args, kwargs)):
        decoded_args, decoded_kwargs = signature.decode(payload)
        assert function(*decoded_args, **decoded_kwargs) == function(*args, **kwargs)


def test_a_call_is_one_json_object_by_name_without_its_defaults() -> None:
    signature = Signature(defaults, what="f", skip=0)

    assert json.loads(signature.encode((1,), {"c": 2.0})) == {"a": 1, "c": 2.0}
    assert signature.encode((1, "x"), {}) == signature.encode((), {"b": "x", "a": 1})


def test_leading_parameters_can_be_skipped() -> None:
    class Flow:
        def record(self, transaction: object, order: str) -> None: ...

    signature = Signature(Flow.record, what="record", skip=2)

    assert json.loads(signature.encode(("o-1",), {})) == {"order": "o-1"}


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"a": 1})]
)
def test_a_call_python_would_refuse_is_a_type_error_that_says_what_takes_what(
    args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match=r"^f\(a: .*\): "):
        Signature(defaults, what="f", skip=0).encode(args, kwargs)


def ship(order: Order, parcels: list[Line]) -> None: ...


SHIP = Signature(ship, what="ship", skip=0)


def test_validation_names_the_argument_and_the_field() -> None:
    with pytest.raises(InvalidPayload, match=r"the arguments of ship .*parcels\.1\.count: "):
        SHIP.validated((Order(id="o"), [{"sku": "s"}, {"sku": "s", "count": 0}]), {})


def test_validation_makes_models_of_what_fits() -> None:
    payload = SHIP.validated(({"id": "o"}, []), {})

    assert SHIP.decode(payload) == ([], {"order": Order(id="o"), "parcels": []})


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"order": {"id": "o"}}', "parcels: Field required"),
        (b'{"order": {"id": "o"}, "parcels": [], "more": 1}', "more: Extra"),
        (b'{"order": {"id": 1}, "parcels": []}', "order.id: "),
        (b"[]", "value: "),
        (b"", "value: Invalid JSON"),
        (b'{"order":' * 100_000, "value: Invalid JSON"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_stored_call_that_does_not_fit_is_refused_with_the_field(
    payload: bytes, field: str
) -> None:
    with pytest.raises(InvalidPayload, match=f"the arguments of ship .*{field}"):
        SHIP.decode(payload)


@pytest.mark.parametrize(
    "value", [object(), "\ud800", knot(), well(), math.nan], ids=["object", "s", "knot", "w", "nan"]
)
def test_arguments_without_a_json_form_are_refused(value: object) -> None:
    def anything(x) -> None: ...  # type: ignore[no-untyped-def]

    signature = Signature(anything, what="anything", skip=0)

    for encode in (signature.encode, signature.validated):
        with pytest.raises(InvalidPayload, match="the arguments of anything cannot be encoded"):
            encode((value,), {})


def test_the_result_of_a_stream_is_its_item() -> None:
    async def count(self: object, n: int) -> AsyncIterator[Line]:
        yield Line(sku="s")

    signature = Signature(count, what="count")

    assert signature.result.decode(b'{"sku": "s"}') == Line(sku="s")
    assert signature.result.what == "the result of count"


def test_annotations_that_cannot_be_resolved_say_what_to_import() -> None:
    def lost(x: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"lost .*'Nowhere'.* TYPE_CHECKING"):
        Signature(lost, what="lost", skip=0)


# --- digests and comparison -----------------------------------------------------------------------


def test_a_digest_is_pinned_since_journals_hold_it() -> None:
    assert digest(b"{}") == 137279666008780115
    assert -(1 << 63) <= digest(b'{"a":1}') < 1 << 63


@given(value=json_values)
def test_payloads_that_say_the_same_are_the_same(value: object) -> None:
    loose = json.dumps(value, indent=2).encode()
    tight = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    assert same_json(loose, tight)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1}', b'{"a": 2}'),
        (b'{"a": 1}', b'{"a": true}'),
        (b"[0]", b"[false]"),
        (b"[]", b"{}"),
        (b"[1]", b"[1, 1]"),
        (b"null", b"0"),
        (b"\xff", b"1"),
        (b"[" * 100_000, b"[" * 100_001),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_payloads_that_differ_are_not_the_same(one: bytes, other: bytes) -> None:
    assert not same_json(one, other)


def test_whole_numbers_are_the_same_with_and_without_a_point() -> None:
    assert same_json(b'{"a": [1]}', b'{"a": [1.0]}')
