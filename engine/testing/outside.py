"""Which names of the standard library and of well-known packages no workflow's body may call."""

from engine.testing.findings import Rule

_EXACT: dict[Rule, str] = {
    Rule.CLOCK: """
        time.time time.time_ns time.monotonic time.monotonic_ns time.perf_counter
        time.perf_counter_ns time.process_time time.process_time_ns time.clock_gettime
        datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today
        arrow.now arrow.utcnow pendulum.now pendulum.today pendulum.tomorrow pendulum.yesterday
        django.utils.timezone.now django.utils.timezone.localtime
        pandas.Timestamp.now pandas.Timestamp.today
    """,
    Rule.RANDOM: """
        os.urandom os.getrandom random.SystemRandom
    """,
    Rule.UUID: """
        uuid.uuid1 uuid.uuid4 uuid.uuid6 uuid.uuid7 uuid.uuid8 uuid.getnode
    """,
    Rule.BLOCKING: "time.sleep",
    Rule.THREADS: """
        asyncio.to_thread asyncio.run asyncio.run_coroutine_threadsafe
        concurrent.futures.ThreadPoolExecutor concurrent.futures.ProcessPoolExecutor
        os.fork threading.Thread threading.Timer anyio.to_thread.run_sync anyio.to_process.run_sync
    """,
    Rule.COMPLETION: "asyncio.as_completed",
    Rule.IO: """
        open input io.open os.getenv os.listdir os.scandir os.walk os.stat os.system
        os.popen os.remove os.unlink os.rename os.replace os.mkdir os.makedirs os.rmdir os.open
        os.read os.write os.getpid os.getcwd os.path.exists os.path.getmtime os.path.getsize
        os.path.isfile os.path.isdir
        asyncio.open_connection asyncio.open_unix_connection asyncio.start_server
        asyncio.create_subprocess_exec asyncio.create_subprocess_shell
        http.client.HTTPConnection http.client.HTTPSConnection
        pathlib.Path.cwd pathlib.Path.home sqlalchemy.create_engine
        sqlalchemy.ext.asyncio.create_async_engine boto3.client boto3.resource boto3.Session
        redis.Redis redis.from_url redis.asyncio.Redis redis.asyncio.from_url
    """,
    Rule.HASH: "hash id",
}

_MODULES: dict[Rule, str] = {
    Rule.RANDOM: "random secrets numpy.random",
    Rule.THREADS: "multiprocessing _thread",
    Rule.IO: """
        requests httpx aiohttp urllib3 urllib.request socket subprocess smtplib ftplib imaplib
        poplib telnetlib asyncpg psycopg psycopg2 aiopg pymongo motor aiofiles sqlite3 aiosqlite
        shutil tempfile glob platform
    """,
}
"""Every function of these."""

_PURE_NAMES = """
    numpy.random.Generator httpx.Timeout httpx.URL httpx.Limits httpx.Headers
    aiohttp.ClientTimeout socket.inet_aton socket.htons socket.ntohs
"""
"""But these."""

_FINE_WITH_ARGUMENTS = {
    "random.Random": Rule.RANDOM,
    "numpy.random.default_rng": Rule.RANDOM,
    "time.gmtime": Rule.CLOCK,
    "time.localtime": Rule.CLOCK,
    "time.ctime": Rule.CLOCK,
    "time.asctime": Rule.CLOCK,
}
"""Such as a generator with a seed."""

FILE_METHODS = ("read_text", "write_text", "read_bytes", "write_bytes", "unlink", "iterdir")
"""Methods that only paths have, or hardly anything else."""

_PURE = frozenset(_PURE_NAMES.split())
_BY_NAME = {name: rule for rule, names in _EXACT.items() for name in names.split()}
_BY_MODULE = {name: rule for rule, names in _MODULES.items() for name in names.split()}


def rule_of(name: str, *, has_arguments: bool) -> Rule | None:
    """What is wrong with calling this dotted name, if anything."""
    if name in _FINE_WITH_ARGUMENTS:
        return None if has_arguments else _FINE_WITH_ARGUMENTS[name]
    if name in _BY_NAME:
        return _BY_NAME[name]
    parts = name.split(".")
    prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    if prefixes & _PURE:
        return None
    found = [rule for module, rule in _BY_MODULE.items() if module in prefixes - {name}]
    return found[0] if found else None
