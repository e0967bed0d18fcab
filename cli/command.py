"""Make a function a command: the options all commands have, and an event loop."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from cli.filters import Filters, parameters
from cli.output import Output
from cli.session import Session

_CONNECTION = "Every command"
Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        help="Where PostgreSQL is, instead of OUTLAST_DSN.",
        metavar="DSN",
        rich_help_panel=_CONNECTION,
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema",
        help="The schema of the engine's tables, instead of OUTLAST_SCHEMA.",
        metavar="NAME",
        rich_help_panel=_CONNECTION,
    ),
]
Json = Annotated[
    bool | None,
    typer.Option(
        "--json/--table",
        help="JSON or tables; without it: tables on a terminal, JSON when piped.",
        rich_help_panel=_CONNECTION,
        show_default=False,
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_CONNECTION),
]


Command = Callable[..., Coroutine[Any, Any, None] | None]


def add_command(app: typer.Typer, function: Command, *, panel: str | None = None) -> None:
    """Make a function a command of the app, under its name; a coroutine function gets an event
    loop. Its first parameter is the ``Session``, the others are as typer takes them, but for one of
    type ``Filters``, which stands for all of their options."""
    app.command(function.__name__, rich_help_panel=panel)(_runnable(function))


def add_group(app: typer.Typer, function: Command, *commands: Command, panel: str) -> None:
    """Make a function a command that has commands of its own, and does its work without one. What
    it is told of the connection holds for them too."""
    group = typer.Typer(context_settings=app.info.context_settings)
    run = _runnable(function, group=True)
    group.callback(invoke_without_command=True)(run)
    for each in commands:
        add_command(group, each)
    app.add_typer(group, name=function.__name__, rich_help_panel=panel)


def _runnable(function: Command, *, group: bool = False) -> Callable[..., None]:
    own = list(inspect.signature(function).parameters.values())[1:]
    filters = next((each for each in own if _is_filters(each.annotation)), None)
    if filters is not None:
        own = [each for each in own if each is not filters] + parameters(filters.annotation)

    def run(**options: Any) -> None:
        context = options.pop("context", None)
        if context is not None and context.invoked_subcommand is not None:
            given = {name: options[name] for name in ("dsn", "schema", "json", "debug")}
            context.default_map = {context.invoked_subcommand: given}
            return
        session = Session(
            dsn=options.pop("dsn"),
            schema=options.pop("schema"),
            output=Output(as_json=options.pop("json")),
        )
        options.pop("debug")
        if filters is not None:
            typed = {name: options.pop(name) for name in filters.annotation.OPTIONS}
            options[filters.name] = filters.annotation(**typed)
        work = function(session, **options)
        if work is not None:
            asyncio.run(work)

    shared = [
        _option("dsn", Dsn, None),
        _option("schema", Schema, None),
        _option("json", Json, None),
        _option("debug", Debug, False),
    ]
    all_of_it = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + shared
    if group:
        kind = inspect.Parameter.KEYWORD_ONLY
        all_of_it.insert(0, inspect.Parameter("context", kind, annotation=typer.Context))
    run.__signature__ = inspect.Signature(all_of_it)  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {each.name: each.annotation for each in all_of_it}
    run.__doc__ = function.__doc__
    return run


def _is_filters(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Filters)


def _option(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )
