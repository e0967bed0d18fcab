"""From ``module:attribute`` on the command line to a ``Runner`` with everything registered."""

import difflib
import importlib
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from cli.exits import CommandError, UsageError

if TYPE_CHECKING:
    from engine.runner import Registered, Runner

_WANTED = "a Runner, a list of prototypes such as [Fulfil(gateway), Stock()], or a function of them"


def load_prototypes(app: str) -> "Sequence[Registered]":
    """Import APP, for what it registers; no database is needed. Errors as of ``load_runner``."""
    from engine.runner import Runner

    # A Runner that is made wants to know where its database is; it is not asked anything.
    os.environ.setdefault("OUTLAST_DSN", "postgresql://localhost/not-asked")
    loaded = _loaded(app)
    if isinstance(loaded, Runner):
        return loaded.registered
    return loaded


def load_runner(app: str) -> "Runner":
    """Import APP and make its runner. What cannot be meant is exit code 2; an exception of the
    user's own code is exit code 1, named with its place."""
    from engine.runner import Runner

    loaded = _loaded(app)
    return loaded if isinstance(loaded, Runner) else Runner().register(*loaded)


def _loaded(app: str) -> "Runner | Sequence[Registered]":
    module_name, colon, path = app.partition(":")
    looks_like_a_file = "/" in module_name or module_name.endswith(".py")
    if not colon or not module_name or not path or looks_like_a_file:
        raise UsageError(_not_an_app(app))
    return _checked(app, _attribute(_module(module_name), path))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {error.name!r} in {Path.cwd()} or among what is installed:"
                " run from the folder that holds it, or correct the name"
            ) from error
        raise _raised(f"importing {name}", error) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name}", error) from error


def _attribute(module: ModuleType, path: str) -> object:
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [name for name in vars(module) if not name.startswith("_")]
            close = difflib.get_close_matches(path, names, n=3)
            hint = f": did you mean {' or '.join(close)}?" if close else f": name {_WANTED}"
            raise UsageError(f"module {module.__name__!r} has no {path!r}{hint}") from None
    return found


def _checked(app: str, loaded: object) -> "Runner | Sequence[Registered]":
    from engine.cluster.entity import Entity
    from engine.runner import Runner
    from engine.workflow.definition import Workflow

    if isinstance(loaded, type):
        raise UsageError(f"{app} is the class {loaded.__name__}; name {_WANTED}")
    if callable(loaded) and not isinstance(loaded, Runner | Workflow | Entity):
        loaded = _call(app, loaded)
    if isinstance(loaded, Runner):
        return loaded
    if isinstance(loaded, Workflow | Entity):
        raise UsageError(f"{app} is one prototype; name a list of them, such as [{_shown(loaded)}]")
    if not isinstance(loaded, list | tuple):
        raise UsageError(f"{app} is {_shown(loaded)}; name {_WANTED}")
    prototypes = cast("Sequence[Registered]", loaded)
    if not prototypes:
        raise UsageError(f"{app} is empty; put prototypes into it, such as Fulfil(gateway)")
    return prototypes


def _call(app: str, function: Callable[[], object]) -> object:
    import inspect

    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{app} is an async function; name {_WANTED}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UsageError(f"{app} cannot be called without arguments: {error}") from None
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _raised(f"calling {app}", error) from error


def _raised(what: str, error: BaseException) -> Exception:
    """An engine's own error says what to do already; any other is shown with its place."""
    from engine.core.errors import EngineError

    if isinstance(error, EngineError):
        return error
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
        message = str(error.msg)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "importlib" not in frame.filename]
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if len(own) > 1 else ""
        message = str(error)
    return CommandError(f"{what} raised {type(error).__name__}: {message}{place}")


def _not_an_app(app: str) -> str:
    file, _, attribute = app.partition(":")
    stem = file.removesuffix(".py").replace("/", ".").strip(".") or "app"
    wanted = f"{stem}:{attribute or 'runner'}"
    return f"{app!r} does not name an APP: write module:attribute, such as {wanted}"


def _shown(thing: Any) -> str:
    return (
        f"{type(thing).__name__}(...)" if not isinstance(thing, str | int | None) else repr(thing)
    )
