"""What the linter points at, and what it leaves alone."""

from pathlib import Path
from textwrap import dedent, indent

import pytest

from engine import ConfigurationError, Workflow
from engine.testing import lint_files, lint_source, lint_workflows

HEAD = """
import asyncio
import collections as queues
import datetime as dt
import os
import random
import secrets
import socket
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import choice as pick
from time import monotonic as ticks
from urllib.parse import quote
from urllib.request import urlopen

import httpx
import requests

import engine
from engine import Deferred, Workflow, activity, query, rpc, signal, transaction, update

SEEN = []
LIMIT = 3
"""


def workflow(body: str, rest: str = "") -> str:
    """A module with a workflow of this body."""
    return "".join(
        [
            HEAD,
            "class Sample(Workflow[str, str]):\n",
            "    async def execute(self, request: str) -> str:\n",
            indent(dedent(body), " " * 8),
            "\n    @activity\n    async def step(self, n: object = None) -> str: ...\n",
            "    box = Deferred(str)\n",
            indent(dedent(rest), " " * 4),
        ]
    )


def codes(source: str) -> list[str]:
    return [each.code for each in lint_source(source)]


BAD = [
    ("time.time()", "OUT101"),
    ("time.monotonic()", "OUT101"),
    ("ticks()", "OUT101"),
    ("datetime.now(UTC)", "OUT101"),
    ("dt.datetime.utcnow()", "OUT101"),
    ("date.today()", "OUT101"),
    ("time.gmtime()", "OUT101"),
    ("random.choice([1, 2])", "OUT102"),
    ("pick([1, 2])", "OUT102"),
    ("random.Random()", "OUT102"),
    ("secrets.token_hex()", "OUT102"),
    ("os.urandom(8)", "OUT102"),
    ("uuid.uuid4()", "OUT103"),
    ("uuid.uuid1()", "OUT103"),
    ("open('x')", "OUT104"),
    ("requests.get('u')", "OUT104"),
    ("await httpx.AsyncClient().get('u')", "OUT104"),
    ("socket.create_connection(('h', 1))", "OUT104"),
    ("subprocess.run(['ls'])", "OUT104"),
    ("urlopen('u')", "OUT104"),
    ("os.environ['HOME']", "OUT104"),
    ("os.getenv('HOME')", "OUT104"),
    ("Path('x').read_text()", "OUT104"),
    ("threading.Thread(target=print).start()", "OUT105"),
    ("ThreadPoolExecutor()", "OUT105"),
    ("await asyncio.to_thread(print)", "OUT105"),
    ("await asyncio.get_running_loop().run_in_executor(None, print)", "OUT105"),
    ("time.sleep(1)", "OUT106"),
    ("for x in {1, 2}: await self.step(x)", "OUT107"),
    ("for x in set(request): await self.step(x)", "OUT107"),
    ("s = {request}\nfor x in s: await self.step(x)", "OUT107"),
    ("s: set[str] = make()\nfor x in s: await self.step(x)", "OUT107"),
    ("a, b = {1}, [2]\nfor x in a: await self.step(x)", "OUT107"),
    ("s = set(request) - {'a'}\nfirst = s.pop()", "OUT107"),
    ("for x in {}.keys() & {}.keys(): await self.step(x)", "OUT107"),
    ("x = [y for y in set(request)]", "OUT107"),
    ("x = list(set(request))", "OUT107"),
    ("x = ','.join(set(request))", "OUT107"),
    ("await asyncio.gather(*{self.step(), self.step()})", "OUT107"),
    ("done, _ = await asyncio.wait([])\nfor x in done: await self.step()", "OUT107"),
    ("for x in asyncio.as_completed([]): await x", "OUT108"),
    ("self.step(1)", "OUT109"),
    ("self.sleep(timedelta(days=1))", "OUT109"),
    ("asyncio.sleep(1)", "OUT109"),
    ("self.box.wait()", "OUT109"),
    ("if self.box.wait(): return", "OUT109"),
    ("if not self.step(request): return", "OUT109"),
    ("while self.wait_until(lambda: True): pass", "OUT109"),
    ("x = 1 if request and self.step(1) else 2", "OUT109"),
    ("assert self.step(1) == 1", "OUT109"),
    ("global LIMIT\nLIMIT = 4", "OUT110"),
    ("SEEN.append(request)", "OUT110"),
    ("SEEN[0] = request", "OUT110"),
    ("Sample.total = 3", "OUT110"),
    ("type(self).total += 1", "OUT110"),
    ("hash(request)", "OUT111"),
    ("await self.wait_until(lambda: time.time() > 3)", "OUT101"),
    ("def inner():\n    return time.time()\ninner()", "OUT101"),
]


@pytest.mark.parametrize(("body", "code"), BAD, ids=[body.splitlines()[-1] for body, _ in BAD])
def test_it_points_at(body: str, code: str) -> None:
    assert codes(workflow(body)) == [code]


FINE = [
    "if await self.box.wait() and not await self.step(1): return",
    "nap = self.sleep(timedelta(days=1))\nawait nap",
    "self.now(); self.random().choice([1]); self.uuid()",
    "datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=1); datetime.fromisoformat(request)",
    "time.gmtime(0)",
    "random.Random(7).random()",
    "uuid.uuid5(uuid.NAMESPACE_DNS, request)",
    "quote(request)",
    "print(request)",
    "Path(request).name",
    "httpx.URL(request)",
    "await asyncio.sleep(1)",
    "mine = self.name; rest = self.a - self.b",
    "asyncio.get_running_loop().time()",
    "for x in sorted({1, 2}): await self.step(x)",
    "x = sum(y for y in {1, 2}); y = len(set(request)); z = 1 in {1, 2}",
    "s = set(request)\ns = sorted(s)\nfor x in s: await self.step(x)",
    "for x in {'a': 1}: await self.step(x)",
    "for x in {}.keys(): await self.step(x)",
    "s = {y for y in set(request)}",
    "done, rest = await asyncio.wait([], return_when=asyncio.FIRST_COMPLETED)\ndone.pop().result()",
    "_, rest = await asyncio.wait([])\nfor x in rest: x.cancel()",
    "task = self.step(1)\nawait task",
    "await asyncio.gather(self.step(1), self.step(2))",
    "async with asyncio.TaskGroup() as group: group.create_task(self.step())",
    "seen = []\nseen.append(1)",
    "SEEN = []\nSEEN.append(1)",
    "x = LIMIT + len(SEEN)",
    "self.total = 1",
    "time = make()\ntime.time()",
    "def open(x): return x\nopen(1)",
]


@pytest.mark.parametrize("body", FINE)
def test_it_leaves_alone(body: str) -> None:
    assert codes(workflow(body)) == []


def test_steps_and_queries_may_do_what_they_like() -> None:
    rest = """
        @activity(timeout=timedelta(seconds=1))
        def read(self) -> float: return time.time()
        @engine.transaction
        async def write(self, tx) -> float: return random.random()
        @query
        def look(self) -> float: return time.time()
        def helper(self): return open("x")
    """
    assert codes(workflow("return await self.read()", rest)) == []


DEEP = """
async def helper(self): return await self.deeper()
async def deeper(self): return time.time()
"""
REACHED = [
    ("return self.helper()", "def helper(self): return time.time()"),
    ("return await self.helper()", DEEP),
    ("self.compensate(self.undo)", "async def undo(self): return time.time()"),
    ("...", "@signal\ndef told(self, x: int): time.time()"),
    ("...", "@update(name='u')\nasync def asked(self, x: int): time.time()"),
    ("...", "@update\ndef asked(self): ...\n@asked.validator\ndef check(self): time.time()"),
    ("self.size", "@property\ndef size(self): return time.time()"),
]


@pytest.mark.parametrize(("body", "rest"), REACHED)
def test_what_the_body_uses_is_of_the_body(body: str, rest: str) -> None:
    assert codes(workflow(body, rest)) == ["OUT101"]


def test_functions_of_the_module_that_the_body_uses_are_looked_at() -> None:
    source = workflow("return stamp()") + "\ndef stamp(): return time.time()\n"

    (found,) = lint_source(source + "def unused(): return time.time()\n", "shop.py")

    assert (found.what, found.where) == ("time.time()", "stamp")
    assert source.splitlines()[found.line - 1].startswith("def stamp")
    assert str(found).startswith(f"shop.py:{found.line}:{found.column}: OUT101 time.time() reads")


def test_sets_that_are_attributes_are_known() -> None:
    rest = """
        def __init__(self) -> None:
            self.open: set[str] = set()
            self.names = ["a"]
    """
    body = "for x in self.open: await self.step(x)\nfor x in self.names: await self.step(x)"
    assert codes(workflow(body, rest)) == ["OUT107"]


MADE_ONCE = [
    "def __init__(self) -> None: self.items = []",
    "def __init__(self) -> None: self.items, self.limit = deque[str](), 3",
    "items: list[str] = []",
    "items = queues.deque()",
    "items: list[str] = field(default_factory=list)",
]
CHANGED = [
    "self.items.append(request)",
    "self.items[0] = request",
    "self.items[0]['a'] = request",
    "self.items += [request]",
    "del self.items[0]",
]


@pytest.mark.parametrize("made", MADE_ONCE)
@pytest.mark.parametrize("changed", CHANGED)
def test_what_the_class_or_its_constructor_made_is_not_changed(made: str, changed: str) -> None:
    handler = f"\n@signal\ndef told(self, request: str) -> None: {changed}\n"

    assert codes(workflow(changed, made)) == ["OUT112"]
    assert codes(workflow("self.items[0]; len(self.items)", made + handler)) == ["OUT112"]
    assert codes(workflow(f"self.items = []\n{changed}", made + handler)) == []


def test_what_only_looks_like_a_change_of_what_is_shared_is_left_alone() -> None:
    made = "items = {}\nrates = [3]\n@staticmethod\ndef put(order): order.items.update(a=1)\n"
    other = "\ndef put(order): order.items.update(a=1)\n"

    assert codes(workflow("self.put(request); put(request)", made) + other) == []
    assert codes(workflow("return self.rates[0].add(1)", made)) == []
    assert codes(workflow("self.stock.update(1)", "stock = api.set()")) == []
    assert codes(workflow("self.items.update(a=1)", made)) == ["OUT112"]


def test_a_class_that_makes_something_else_of_a_name_has_not_what_its_base_made() -> None:
    base = "class Base(Workflow[str, str]):\n    items = []\n"
    flow = "class Flow(Base):\n    items = Sink()\n"
    body = "    async def execute(self, request): self.items.append(1)\n"

    assert codes(HEAD + base + flow + body) == []
    assert codes(HEAD + base + flow.replace("Sink()", "[1]") + body) == ["OUT112"]


def test_a_constructor_of_a_base_makes_things_once_too() -> None:
    base = "class Base(Workflow[str, str]):\n    def __init__(self): self.items = {}\n"
    flow = "class Flow(Base):\n    def __init__(self): super().__init__()\n"
    body = "    async def execute(self, request): self.items.update(a=1)\n"
    steps = "    @activity\n    async def step(self): self.items.clear()\n"

    assert codes(HEAD + base + flow + body + steps) == ["OUT112"]


def test_a_comment_silences_its_line_for_the_codes_it_names() -> None:
    body = """
        a = time.time()  # outlast: ignore[OUT101]
        b = time.time()  # outlast: ignore
        c = time.time()  # outlast: ignore[OUT102, OUT101]  because
        d = time.time()  # outlast: ignore[OUT102]
        e = "# outlast: ignore", time.time()
    """
    assert [each.line - HEAD.count("\n") for each in lint_source(workflow(body))] == [7, 8]


def test_classes_that_are_no_workflows_are_none_of_its_business() -> None:
    source = HEAD + "class Clock:\n    async def execute(self, request): return time.time()\n"
    source += "class Other(dt.Workflow):\n    async def execute(self, r): return time.time()\n"
    assert codes(source) == []


def test_bases_and_mixins_in_other_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(
        HEAD + "class Base(engine.Workflow[str, str]):\n"
        "    def helper(self): return time.time()\n"
        "    def unused(self): return time.time()\n"
    )
    (tmp_path / "mixin.py").write_text(
        "import time\nclass Mixin:\n    def late(self): time.time()\n"
    )
    (tmp_path / "flow.py").write_text(
        "from base import Base\nfrom mixin import Mixin\n"
        "class Flow(Mixin, Base):\n"
        "    async def execute(self, request): return self.helper(), self.late()\n"
    )
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bad.py").write_text("not python at all")

    found = [each.where for each in lint_files([tmp_path])]

    assert found == ["Base.helper", "Mixin.late"]


def test_the_files_of_registered_workflows_are_found(tmp_path: Path) -> None:
    class Here(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            import time

            return int(time.time())

    found = [each for each in lint_workflows([Here()]) if each.where == "Here.execute"]

    assert [(each.file, each.code) for each in found] == [(__file__, "OUT101")]


def test_what_is_not_python_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def (")

    with pytest.raises(ConfigurationError, match=r"x\.py:1 is not Python"):
        lint_files([tmp_path])
    with pytest.raises(ConfigurationError, match="there is no"):
        lint_files([tmp_path / "y"])


def test_the_examples_are_clean() -> None:
    assert lint_files([Path(__file__).parents[2] / "examples"]) == []


def test_names_of_a_star_import_are_known() -> None:
    source = """
        import time
        from engine import *


        class Sample(Workflow[str, str]):
            async def execute(self, request: str) -> str:
                time.sleep(1)
                return request
    """
    assert [each.code for each in lint_source(dedent(source))] == ["OUT106"]
