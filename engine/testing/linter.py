"""Point at what a replay cannot repeat: clock, random, I/O, sets and more in workflows' bodies.

It reads source and runs nothing. What it looks through is ``execute``, signals, updates and their
validators, with the methods of the class and the functions of the module that these use; never
what is marked ``@activity``, ``@transaction`` or ``@query``.
"""

import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.core.errors import ConfigurationError
from engine.testing.findings import Finding
from engine.testing.inspector import Inspector
from engine.testing.program import Module, workflows_in
from engine.workflow.definition import Workflow

__all__ = ["Finding", "lint_files", "lint_source", "lint_workflows"]

_IGNORE = re.compile(r"#\s*outlast:\s*ignore(?:\[([A-Z0-9,\s]+)\])?")
_SKIPPED = frozenset({"node_modules", "site-packages", "__pycache__", "build", "dist", "venv"})

Ignored = Mapping[int, frozenset[str] | None]
"""The codes that a line's comment says to ignore; None for all."""


def lint_source(source: str, file: str = "<source>") -> list[Finding]:
    """What there is to say about the workflows in a text of Python."""
    return _lint({file: source})


def lint_files(paths: Iterable[str | Path]) -> list[Finding]:
    """What there is to say about the workflows in these files and folders.

    ``ConfigurationError`` for what cannot be read or is not Python.
    """
    sources: dict[str, str] = {}
    for path in map(Path, paths):
        for file in _python_files(path):
            try:
                with tokenize.open(file) as opened:
                    sources[str(file)] = opened.read()
            except (OSError, SyntaxError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{file} cannot be read: {error}") from error
    return _lint(sources)


def lint_workflows(prototypes: Iterable[object]) -> list[Finding]:
    """What there is to say about the files that these workflows and their bases are written in."""
    files = {
        file: None
        for prototype in prototypes
        if isinstance(prototype, Workflow)
        for cls in type(prototype).__mro__  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportUnknownArgumentType]
        if (file := _file_of(cls)) is not None
    }
    return lint_files(files)


def _file_of(cls: type[Any]) -> str | None:
    if cls.__module__.partition(".")[0] in ("engine", "builtins", "typing", "abc"):
        return None
    try:
        return inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None


def _python_files(path: Path) -> Sequence[Path]:
    if not path.exists():
        raise ConfigurationError(f"there is no {path}: name Python files or folders of them")
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*.py"))
    return [each for each in found if not _skipped(each.relative_to(path))]


def _skipped(path: Path) -> bool:
    return any(part in _SKIPPED or part.startswith(".") for part in path.parts[:-1])


def _lint(sources: Mapping[str, str]) -> list[Finding]:
    modules: list[Module] = []
    for file, source in sources.items():
        try:
            modules.append(Module.parse(source, file))
        except SyntaxError as error:
            raise ConfigurationError(
                f"{file}:{error.lineno} is not Python: {error.msg}; correct it, or leave it out"
            ) from error
    ignored = {file: _ignored(source) for file, source in sources.items()}
    found: set[Finding] = set()
    for workflow in workflows_in(modules):
        for reached in workflow.reached():
            for finding, end in Inspector(reached).inspect().findings:
                if not _is_ignored(finding, end, ignored[finding.file]):
                    found.add(finding)
    return sorted(found)


def _is_ignored(finding: Finding, end: int, ignored: Ignored) -> bool:
    for line in {finding.line, end}:
        codes = ignored.get(line, frozenset())
        if codes is None or finding.code in codes:
            return True
    return False


def _ignored(source: str) -> Ignored:
    found: dict[int, frozenset[str] | None] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        match = _IGNORE.search(token.string) if token.type == tokenize.COMMENT else None
        if match is not None:
            codes = match[1]
            found[token.start[0]] = (
                None if codes is None else frozenset(re.split(r"[,\s]+", codes.strip()))
            )
    return found
