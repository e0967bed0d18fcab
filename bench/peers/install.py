"""Install the rivals: an environment for each under ``.outlast/peers``, at pinned versions.

``python -m bench.peers.install`` does only that. What is installed already stays.
"""

import subprocess
import sys
from pathlib import Path

from bench.peers.catalogue import ENGINES, OURS, Engine
from bench.results import ROOT

HOME = ROOT / ".outlast/peers"
REQUIREMENTS = Path(__file__).parent / "rivals"


def python_of(engine: Engine) -> Path:
    """Its interpreter; ours is the one that runs this."""
    if engine.module == OURS:
        return Path(sys.executable)
    return HOME / engine.module / "bin/python"


def install(engine: Engine) -> str | None:
    """What went wrong, in one line, or None."""
    if engine.module == OURS:
        return None
    home, pinned = HOME / engine.module, _pinned(engine)
    wanted = f"{pinned.read_text()}{engine.npm or ''}\n"
    stamp = home / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    print(f"installing {engine.title} into {home.relative_to(ROOT)}", flush=True)
    pip = [python_of(engine), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    commands: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", home],
        [*pip, "install", "--requirement", pinned],
    ]
    if engine.npm:
        commands.append(["npm", "install", "--no-audit", "--no-fund", "--prefix", home, engine.npm])
    for command in commands:
        if complaint := _run(command):
            return complaint
    stamp.write_text(wanted)
    return None


def versions(engine: Engine) -> str:
    """Of what is pinned; ours is whatever is checked out, which every figure names."""
    if engine.module == OURS:
        return "as checked out"
    pinned = _pinned(engine).read_text().splitlines()
    version = next(line for line in pinned if line.startswith(f"{engine.package}=="))
    return ", ".join(filter(None, [version.replace("==", " "), engine.npm]))


def _pinned(engine: Engine) -> Path:
    return REQUIREMENTS / f"{engine.module}.txt"


def _run(command: list[str | Path]) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    errors = (line for line in done.stderr.splitlines() if "error" in line.lower())
    return f"{Path(command[0]).name}: {next(errors, f'exit code {done.returncode}')}"


def main() -> int:
    failed = False
    for engine in ENGINES:
        if complaint := install(engine):
            failed = True
            print(f"{engine.title} is not installed: {complaint}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
