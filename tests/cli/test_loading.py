"""From APP on the command line to a runner, and what each kind of mistake is told."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.exits import CommandError, ExitCode, UsageError
from cli.loading import load_runner
from engine import ConfigurationError, Runner

NUMBERS = itertools.count()
HEAD = "from tests.cli.orders import Broken, Fulfil, Slow, Stock\nfrom engine import Runner\n"
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module and gives its name, a new one each time."""
    monkeypatch.setenv("OUTLAST_DSN", "postgresql://localhost/shop")
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def write(source: str) -> str:
        written.append(f"app_{next(NUMBERS)}")
        (tmp_path / f"{written[-1]}.py").write_text(HEAD + source)
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "source",
    [
        "app = Runner().register(Fulfil(), Stock())",
        "app = [Fulfil(), Stock()]",
        "app = (Fulfil(), Stock())",
        "def app():\n    return [Fulfil(), Stock()]",
        "def app():\n    return Runner().register(Fulfil(), Stock())",
        "class Shop:\n    pass\napp = lambda: [Fulfil(), Stock()]",
    ],
)
def test_an_app_is_a_runner_a_list_of_prototypes_or_a_function_of_either(
    write: Write, source: str
) -> None:
    assert isinstance(load_runner(f"{write(source)}:app"), Runner)


def test_an_attribute_may_lie_deeper(write: Write) -> None:
    assert isinstance(load_runner(f"{write('class Shop:    app = [Slow()]')}:Shop.app"), Runner)


@pytest.mark.parametrize("app", ["", "app", "app:", ":app", "shop/app.py"])
def test_a_name_without_module_or_attribute_is_told_how_to_write_one(app: str) -> None:
    with pytest.raises(UsageError, match="write module:attribute"):
        load_runner(app)


def test_a_module_that_is_not_there_is_told_from_one_it_imports(write: Write) -> None:
    with pytest.raises(UsageError, match=r"there is no module 'no_such_app' in .*: run from"):
        load_runner("no_such_app:app")
    with pytest.raises(UsageError, match=r"there is no module 'no_such'"):
        load_runner("no_such.app:app")

    name = write("import no_such_library")

    with pytest.raises(CommandError, match=rf"importing {name} raised ModuleNotFoundError") as told:
        load_runner(f"{name}:app")
    assert told.value.code is ExitCode.FAILED
    assert f"{name}.py, line 3" in str(told.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_an_exception_of_the_module_is_named_with_its_line(
    write: Write, source: str, message: str
) -> None:
    name = write(source)

    with pytest.raises(CommandError) as told:
        load_runner(f"{name}:app")

    assert told.value.code is ExitCode.FAILED
    assert message in str(told.value)
    assert f"{name}.py, line 3" in str(told.value)


def test_a_function_that_raises_is_named_with_its_line(write: Write) -> None:
    name = write("def app():\n    raise KeyError('gateway')")

    with pytest.raises(CommandError, match=rf"calling {name}:app raised KeyError: 'gateway'"):
        load_runner(f"{name}:app")


def test_an_attribute_that_is_not_there_is_answered_with_a_guess(write: Write) -> None:
    name = write("runner = [Slow()]")

    with pytest.raises(UsageError, match="has no 'runer': did you mean runner"):
        load_runner(f"{name}:runer")
    with pytest.raises(UsageError, match="has no 'zzz': name a Runner, a list of prototypes"):
        load_runner(f"{name}:zzz")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("app = Slow", "is the class Slow; name a Runner"),
        ("app = Slow()", r"is one prototype; name a list of them, such as \[Slow\(...\)\]"),
        ("app = []", "is empty"),
        ("app = 3", "is 3; name a Runner"),
        ("app = {}", r"is dict\(...\); name a Runner"),
        ("async def app(): ...", "is an async function"),
        ("def app(gateway): ...", "cannot be called without arguments: missing a required"),
        ("def app(): ...", "is None; name a Runner"),
    ],
)
def test_something_else_is_told_what_is_wanted(write: Write, source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_runner(f"{write(source)}:app")


@pytest.mark.parametrize("source", ["app = [Slow, 3]", "app = [Slow(), Slow()]"])
def test_prototypes_the_runner_refuses_keep_its_message(write: Write, source: str) -> None:
    with pytest.raises(ConfigurationError):
        load_runner(f"{write(source)}:app")
