"""A project's Python files are watched, and nothing else."""

import asyncio
import os
from pathlib import Path

from cli.watching import Watcher, snapshot


async def test_a_change_is_seen_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    app, new = tmp_path / "app.py", tmp_path / "shop" / "new.py"
    app.write_text("x = 1")
    watcher = Watcher(tmp_path)

    app.write_text("x = 12")
    assert await watcher.changed() == ["app.py"]
    new.write_text("")
    assert await watcher.changed() == [str(Path("shop", "new.py"))]
    os.utime(app, (1, 1))
    new.unlink()
    assert await watcher.changed() == ["app.py", str(Path("shop", "new.py"))]


async def test_a_change_while_it_is_waited_for_is_seen(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    waiting = asyncio.create_task(watcher.changed())
    await asyncio.sleep(0)

    (tmp_path / "app.py").write_text("")

    assert await asyncio.wait_for(waiting, 10) == ["app.py"]


def test_what_is_not_the_projects_is_left_out(tmp_path: Path) -> None:
    for folder in (".git", ".venv", "__pycache__", "node_modules", "environment", "shop"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text("")
    (tmp_path / "environment" / "pyvenv.cfg").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "shop" / "loop").symlink_to(tmp_path)

    assert list(snapshot(tmp_path)) == [str(tmp_path / "shop" / "x.py")]


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert snapshot(tmp_path / "gone") == {}
