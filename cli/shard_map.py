"""The shards of a group on a terminal: one letter for each, by its owner."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from string import ascii_letters, digits
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from cli.durations import ago
from cli.output import table

if TYPE_CHECKING:
    from datetime import datetime

    from engine.core.ids import RunnerId
    from engine.storage.protocol import ShardRow

_LETTERS = ascii_letters[26:] + ascii_letters[:26] + digits
_NOBODY, _OTHERS = ".", "+"
_STYLES = ("green", "cyan", "magenta", "yellow", "blue", "bright_green", "bright_cyan")
_BLOCK = 10


def shard_map(
    rows: "Sequence[ShardRow]", names: "Mapping[RunnerId, str]", *, now: "datetime", width: int
) -> RenderableType:
    """Each group with its owners, the epochs of their shards, and the shards in order."""
    parts: list[RenderableType] = []
    for group, found in groupby(sorted(rows, key=lambda row: row.shard), lambda row: row.shard[0]):
        drawn = _Group(group, list(found), names)
        parts += [Text(), *drawn.parts(now, width)] if parts else drawn.parts(now, width)
    return Group(*parts)


class _Group:
    """One group: its owners have letters in the order of their names."""

    def __init__(
        self, name: str, rows: "Sequence[ShardRow]", names: "Mapping[RunnerId, str]"
    ) -> None:
        self._name = name
        self._rows = rows
        owners = {row.runner for row in rows if row.runner is not None}
        self._owners = sorted(owners, key=lambda id: (names.get(id, "~"), id))
        self._names = names
        self._letters: dict[RunnerId | None, str] = {None: _NOBODY}
        for index, owner in enumerate(self._owners):
            self._letters[owner] = _LETTERS[index] if index < len(_LETTERS) else _OTHERS

    def parts(self, now: "datetime", width: int) -> list[RenderableType]:
        count = len(self._rows)
        head = Text.assemble((self._name, "bold"), f"  {count} shard{'s' if count != 1 else ''}")
        return [head, self._legend(now), Text(), self._cells(width)]

    def _legend(self, now: "datetime") -> RenderableType:
        free = any(row.runner is None for row in self._rows)
        shown: list[RunnerId | None] = [*self._owners, *([None] if free else [])]
        return table(
            ["", "OWNER", ">SHARDS", "EPOCHS", "LAST CHANGE"],
            [self._holder(owner, now) for owner in shown],
        )

    def _holder(self, owner: "RunnerId | None", now: "datetime") -> list[RenderableType]:
        rows = [row for row in self._rows if row.runner == owner]
        epochs = sorted({row.epoch for row in rows})
        latest = max((row.acquired_at for row in rows if row.acquired_at), default=None)
        name = "nobody" if owner is None else self._names.get(owner, f"{owner} (unknown)")
        return [
            Text(self._letters[owner], self._style(owner)),
            Text(name, "red" if owner is None else ""),
            str(len(rows)),
            str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            ago(latest, now) if latest and owner else "",
        ]

    def _cells(self, width: int) -> Text:
        """Lines of blocks of ten, with the number of the first shard in front."""
        label = len(str(self._rows[-1].shard.number))
        blocks = max(1, min(10, (width - label) // (_BLOCK + 1)))
        text = Text()
        for index, row in enumerate(self._rows):
            if index % (blocks * _BLOCK) == 0:
                text.append(("\n" if index else "") + f"{row.shard.number:>{label}}", "dim")
            if index % _BLOCK == 0:
                text.append(" ")
            text.append(self._letters[row.runner], self._style(row.runner))
        return text

    def _style(self, owner: "RunnerId | None") -> str:
        return "red" if owner is None else _STYLES[self._owners.index(owner) % len(_STYLES)]
