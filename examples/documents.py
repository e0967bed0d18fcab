"""A document pipeline: count the words of every text file under a folder, page by page.

``python examples/documents.py [FOLDER]`` (default: this repository's docs) runs it in one process
with a runner of its own and compares the result with that of a plain program.
"""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import monotonic

from pydantic import BaseModel

from engine import Runner, Settings, Workflow, activity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import ROOT, database, run_script

LINES = 100
AT_ONCE = 16


class Page(BaseModel):
    """Some lines of a file; ``first`` counts from 0."""

    file: str
    first: int
    lines: int


class CountWords(Workflow[str, dict[str, int]]):
    """The words of a folder's text files, the most frequent first."""

    async def execute(self, request: str) -> dict[str, int]:
        pages = await self.pages(request)
        slots = asyncio.Semaphore(AT_ONCE)  # plain asyncio: on replay it lets the same ones in
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.one(page, slots)) for page in pages]
        total: Counter[str] = Counter()
        for task in tasks:
            total.update(task.result())
        return dict(sorted(total.items(), key=lambda each: (-each[1], each[0])))

    async def one(self, page: Page, slots: asyncio.Semaphore) -> dict[str, int]:
        async with slots:
            return await self.count(page)

    @activity
    def pages(self, folder: str) -> list[Page]:
        """A step without ``async`` runs in a thread, so that reading files blocks nobody."""
        return [
            Page(file=str(file), first=first, lines=LINES)
            for file, text in text_files(Path(folder))
            for first in range(0, len(text.splitlines()), LINES)
        ]

    @activity
    def count(self, page: Page) -> dict[str, int]:
        with Path(page.file).open(encoding="utf-8", newline="") as file:
            text = "".join(file.read().splitlines(keepends=True)[page.first :][: page.lines])
        return Counter(words(text))


def text_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files below a folder that are text, in order; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.parts):
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                yield path, text


def words(text: str) -> Iterator[str]:
    return (word.lower() for word in re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", text))


def plain(folder: Path) -> Counter[str]:
    """The same without an engine."""
    return Counter(word for _, text in text_files(folder) for word in words(text))


def runner() -> Runner:
    return Runner().register(CountWords())


async def count(dsn: str, folder: Path) -> tuple[dict[str, int], int]:
    """The words of a folder and the number of steps that took, by a runner in this process."""
    async with Runner(Settings(dsn=dsn, schema="engine")).register(CountWords()) as runner:
        execution = await runner.client.start(CountWords, str(folder))
        result = await execution.join()
        return result, len(await execution.history())


async def main(folder: Path) -> int:
    async with asyncio.timeout(120), database("documents") as dsn:
        began = monotonic()
        found, steps = await count(dsn, folder)
        seconds = monotonic() - began
    files = sum(1 for _ in text_files(folder))
    total = sum(found.values())
    print(f"{total} words in {files} files under {folder}: {steps} steps in {seconds:.1f} s")
    for word, times in islice(found.items(), 10):
        print(f"{times:8}  {word}")
    if found != plain(folder):
        print("NOT what a plain program counts", file=sys.stderr)
        return 1
    print("The same as a plain program counts.")
    return 0


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    if not where.is_dir():
        sys.exit(f"{where} is not a folder; name one that holds text files")
    sys.exit(run_script(lambda: main(where.resolve())))
