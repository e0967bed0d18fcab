"""What is kept of an exception, and that the engine's own survive a trip between processes."""

import pickle

import pytest

from engine.core.errors import (
    ConfigurationError,
    EngineError,
    ErrorDetails,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    InvalidPayload,
    MailboxFull,
    NonDeterminism,
    NotFound,
    NotRegistered,
    OwnershipLost,
    PayloadConflict,
    RequestFailed,
    SchemaMismatch,
    StepFailed,
    StepTimedOut,
    StorageUnavailable,
    UpdateRejected,
)

DECLINED = ErrorDetails("Declined", "no money", details={"code": 51})


class Declined(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.details = {"code": 51}


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_exception_is_described_with_type_message_traceback_and_details() -> None:
    described = ErrorDetails.of(raised(Declined("no money")))

    assert (described.type, described.message) == ("Declined", "no money")
    assert described.details == {"code": 51}
    assert "raise error from cause" in described.traceback
    assert described.cause is None
    assert str(described) == "Declined: no money"


def test_an_exception_without_message_is_named_by_its_type() -> None:
    assert str(ErrorDetails.of(ValueError())) == "ValueError"


def test_causes_are_described_as_deep_as_asked() -> None:
    error = raised(ValueError("0"))
    for number in range(1, 6):
        error = raised(ValueError(str(number)), cause=error)

    described: ErrorDetails | None = ErrorDetails.of(error, depth=3)

    messages: list[str] = []
    while described is not None:
        messages.append(described.message)
        described = described.cause
    assert messages == ["5", "4", "3", "2"]


def test_the_context_is_a_cause_unless_it_was_suppressed() -> None:
    def fail(suppress: bool) -> ErrorDetails:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                if suppress:
                    raise ValueError("second") from None
                raise ValueError("second")  # noqa: B904 - the context is what is tested
        except ValueError as error:
            return ErrorDetails.of(error)

    assert fail(suppress=False).cause is not None
    assert fail(suppress=True).cause is None


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one

    assert ErrorDetails.of(one).cause is not None


def test_a_group_is_caused_by_its_first_exception() -> None:
    described = ErrorDetails.of(ExceptionGroup("two", [ValueError("a"), KeyError("b")]))

    assert described.cause is not None
    assert str(described.cause) == "ValueError: a"


def test_a_failure_from_elsewhere_is_caused_by_what_failed_there() -> None:
    assert ErrorDetails.of(StepFailed("charge failed", DECLINED)).cause == DECLINED


def test_an_exception_that_cannot_speak_is_described_all_the_same() -> None:
    class Mute(Exception):
        @property
        def details(self) -> object:
            raise RuntimeError

        def __str__(self) -> str:
            raise RuntimeError

    described = ErrorDetails.of(Mute())

    assert described.type.endswith("Mute")
    assert "cannot be read" in described.message
    assert described.details is None


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("what to do")
            for kind in (
                ConfigurationError,
                SchemaMismatch,
                NotRegistered,
                NotFound,
                InvalidPayload,
                PayloadConflict,
                UpdateRejected,
                MailboxFull,
                OwnershipLost,
                StorageUnavailable,
            )
        ),
        *(
            kind("it failed", DECLINED)
            for kind in (ExecutionFailed, RequestFailed, StepFailed, StepTimedOut)
        ),
        ExecutionInterrupted("too slow"),
        ExecutionInterrupted(),
        ExecutionTerminated("at once"),
        ExecutionTerminated(),
        NonDeterminism(expected="step 1", found="calls step 2", where="flow.py:7"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_engines_errors_survive_pickling(error: EngineError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert isinstance(copy, EngineError)


def test_a_step_that_timed_out_is_a_time_out() -> None:
    assert isinstance(StepTimedOut("late", DECLINED), TimeoutError)
