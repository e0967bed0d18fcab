"""The contracts on imports hold, and no module stands outside of them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_every_part_of_the_engine_has_a_layer() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    named = set(re.findall(r"engine\.(\w+)", " ".join(layers)))

    parts = {
        path.stem
        for path in (CHECKOUT / "engine").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }

    assert parts - named == {"__init__"}


def test_imports_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([linter], cwd=CHECKOUT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
