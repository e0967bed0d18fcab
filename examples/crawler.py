"""A crawler: all pages of a site, asked for no faster than the site allows, whoever else asks.

``python examples/crawler.py`` serves a small site on this machine and crawls it twice at once.
"""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import urlopen

from pydantic import BaseModel

from engine import Queue, Rate, StepFailed, Workflow

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import run_script, serving

PAUSES = [timedelta(seconds=1), timedelta(seconds=30), timedelta(minutes=10)]


class Page(BaseModel):
    url: str
    words: int
    links: list[str]


class Fetch(Queue[str, Page]):
    """One of these for the whole cluster, so that the limits are those of all crawls together."""

    rate = Rate(20, timedelta(seconds=1))
    per_key = 2  # at once from each host

    def __init__(self, get: Callable[[str], Awaitable[str]]) -> None:
        self.get = get

    @classmethod
    def key(cls, item: str) -> str:
        return urlsplit(item).netloc

    async def process(self, item: str) -> Page:
        text = await self.get(item)
        links = [urljoin(item, link) for link in re.findall(r'href="([^"#]+)"', text)]
        words = len(re.sub(r"<[^>]*>", " ", text).split())
        return Page(url=item, words=words, links=links)


class Crawl(Workflow[str, dict[str, int]]):
    """How many words each page has that can be reached on the host of the first one."""

    async def execute(self, request: str) -> dict[str, int]:
        host = urlsplit(request).netloc
        words: dict[str, int] = {}
        level = [request]
        while level:
            pages = await asyncio.gather(*map(self.fetch, level))
            words |= {page.url: page.words for page in pages}
            links = {link for page in pages for link in page.links}
            level = sorted(link for link in links - words.keys() if urlsplit(link).netloc == host)
        return words

    async def fetch(self, url: str) -> Page:
        """A page; one that cannot be had now is asked for again, behind all that wait then."""
        for pause in PAUSES:
            try:
                return await self.submit(Fetch, url)
            except StepFailed:
                await self.sleep(pause)
        return Page(url=url, words=0, links=[])


async def over_http(url: str) -> str:
    def read() -> str:
        with urlopen(url, timeout=10) as response:
            return str(response.read(), "utf-8")

    return await asyncio.to_thread(read)


class Site:
    """A web server in this process: page n of so many links to the two below it in a tree."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.asked: Counter[str] = Counter()

    def page(self, path: str) -> str:
        self.asked[path] += 1
        below = [n for n in (2 * int(path[1:]), 2 * int(path[1:]) + 1) if n <= self.pages]
        links = "".join(f'<a href="/{n}">page {n}</a> ' for n in below)
        return f'<h1>This is page {path[1:]}</h1>{links}<a href="/1">home</a>'

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = self.page(request.split()[1]).encode()
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def served(self) -> AsyncGenerator[str]:
        """The address of its first page."""
        async with await asyncio.start_server(self.answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            yield f"http://{host}:{port}/1"


async def main() -> int:
    site = Site(pages=15)
    async with site.served() as url, serving("crawler", Crawl(), Fetch(over_http)) as client:
        crawls = [await client.start(Crawl, url, key=f"crawl-{n}") for n in (1, 2)]
        results = [await crawl.join() for crawl in crawls]
    print(f"{len(results[0])} pages, {sum(results[0].values())} words")
    print("The same twice" if results[0] == results[1] else "NOT the same twice")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
