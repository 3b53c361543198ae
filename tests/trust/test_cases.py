"""Small scripts, one fault each (`cases/README.md`), in a process of their own: exit 0 means that the fault is gone."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cases"
CASES = sorted(path.name for path in [*HERE.glob("[!_]*.py"), *HERE.glob("*.sh")])


def test_every_known_fault_has_its_script():
    assert len(CASES) == 34


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_fault_is_gone(name, tmp_path):
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "TMPDIR": str(tmp_path), "CRLSR_CACHE": str(tmp_path / "cache"), "PY": sys.executable}
    command = [sys.executable, str(HERE / name)] if name.endswith(".py") else ["sh", str(HERE / name)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, errors="backslashreplace", timeout=900)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
