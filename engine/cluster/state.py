"""``State``: what an entity keeps durably, and the copy of it that its handlers work on.

Loaded with the entity by ``cluster.instance``; saved in the commit of the reply, so that a change
and the answer that speaks of it are one.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast, overload

from engine.cluster.call import CURRENT
from engine.core.codec import ValueCodec
from engine.core.errors import ConfigurationError, InvalidPayload
from engine.storage.entities import StateWrite, StoredState

M = TypeVar("M")


class State(Generic[M]):
    """The durable state of an entity: ``state = State(Cart)`` in its class body.

    Inside a handler ``self.state`` is the model; change it in place or assign a new one. What a
    handler changed is saved in the same transaction as its reply; a handler that raises has changed
    nothing. An entity that was never saved begins with ``initial()``, by default ``Cart()``.

    Handlers that may write run one at a time, whatever the entity's concurrency; those marked
    ``@rpc(readonly=True)`` run beside them, on the state last saved.
    """

    __slots__ = ("_codec", "_initial", "_model", "name")

    def __init__(self, model: type[M], *, initial: Callable[[], M] | None = None) -> None:
        self._model = model
        self._initial = initial
        self._codec: ValueCodec[M] | None = None
        self.name: str = "state"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "State[M]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> M: ...
    def __get__(self, instance: object, owner: type) -> "State[M] | M":
        if instance is None:
            return self
        return cast("M", self._working(instance).value)

    def __set__(self, instance: object, value: M) -> None:
        self._working(instance).value = value

    def _working(self, instance: object) -> "Working":
        call = CURRENT.get()
        if call is None or call.entity is not instance or not isinstance(call.state, Working):
            raise ConfigurationError(
                f"{type(instance).__name__}.{self.name} is the state of one entity: it is there"
                " inside the entity's handlers; from outside, call a handler that returns it"
            )
        return call.state

    @property
    def codec(self) -> ValueCodec[M]:
        """How it is stored; ``ConfigurationError`` when the model has no JSON form."""
        if self._codec is None:
            self._codec = ValueCodec(self._model, what=f"the {self.name} ({self._model!r})")
        return self._codec

    def begin(self) -> M:
        """The state of an entity that was never saved."""
        if self._initial is not None:
            return self._initial()
        try:
            return self._model()
        except Exception as error:
            raise ConfigurationError(
                f"{self.name} = State({self._model.__name__}) cannot begin: {error};"
                f" give the model's fields defaults, or say State(..., initial=lambda: ...)"
            ) from error


class Working:
    """The state a handler sees and may change."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class StateCell:
    """One entity's state in memory: what is saved, and the object the next writer works on.

    INVARIANT saved-only: ``version`` and ``payload`` are those of a committed row; a writer's
    change counts from its commit on, and the next writer begins after it.

    What is stored need not fit the model, which may be a later one: that is found by who works on
    it, and does not keep it from being replaced.
    """

    __slots__ = ("_live", "_payload", "_read", "_state", "version")

    def __init__(self, state: State[Any], stored: StoredState | None) -> None:
        self._state = state
        self._live: Any = state.begin() if stored is None else None
        self._payload = state.codec.encode(self._live) if stored is None else stored.payload
        self._read = stored is None
        self.version: int = 0 if stored is None else stored.version

    def working(self, *, readonly: bool) -> Working:
        """For one handler: the live object for a writer, a copy of its own for a reader.

        ``InvalidPayload`` when what is stored does not fit the model.
        """
        if not readonly and self._live is not None:
            return Working(self._live)
        value = self._saved()
        if not readonly:
            self._live = value
        return Working(value)

    def _saved(self) -> Any:
        codec = self._state.codec
        if self._read:
            return codec.decode(self._payload)
        try:
            value = codec.decode(self._payload)
        except InvalidPayload as error:
            raise InvalidPayload(
                f"version {self.version} of {error}; have the model accept what is stored, or"
                f" replace it: outlast state TYPE/ID --set JSON --version {self.version}"
            ) from error
        self._payload = codec.encode(value)  # an earlier model may have put it in other words
        self._read = True
        return value

    def change(self, working: Working, entity_type: str, entity_id: str) -> StateWrite | None:
        """What is to be saved of a handler's work, if anything; ``InvalidPayload`` when it does
        not fit the model, or would not when it is read again."""
        codec = self._state.codec
        payload = codec.encode(codec.validate(working.value))
        if payload == self._payload:
            return None
        # A model's instance passes for valid, whatever was assigned to its fields.
        working.value = codec.decode(payload)
        return StateWrite(
            entity_type=entity_type,
            entity_id=entity_id,
            version=self.version + 1,
            payload=payload,
        )

    def replacing(self, payload: bytes) -> Working:
        """The state somebody outside wants; ``InvalidPayload`` when it does not fit the model."""
        return Working(self._state.codec.decode(payload))

    def changed(self, working: Working) -> bool:
        """Whether a reader's copy is another than it was."""
        try:
            return self._state.codec.encode(working.value) != self._payload
        except InvalidPayload:
            return True

    def saved(self, write: StateWrite, working: Working) -> None:
        self.version, self._payload, self._live = write.version, write.payload, working.value
        self._read = True

    def roll_back(self) -> None:
        """Forget what a handler did to the live object."""
        self._live = None


def state_of(entity: type) -> State[Any] | None:
    """The state an entity class declares; ``ConfigurationError`` when there are two."""
    found: dict[str, Any] = {}
    for cls in reversed(entity.__mro__):
        for name, value in vars(cls).items():
            if isinstance(value, State):
                found[name] = value
            else:
                found.pop(name, None)
    if len(found) > 1:
        raise ConfigurationError(
            f"{entity.__qualname__} has {len(found)} states, {' and '.join(sorted(found))};"
            " make them fields of one model, so that they are saved together"
        )
    return next(iter(found.values()), None)
