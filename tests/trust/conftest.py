"""Processes that are started once: loading everything takes seconds, a fork nothing."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def served(module: str):
    "A process that answers lines of JSON by lines of JSON."
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def driver():
    yield from served("tests.trust.driver")


@pytest.fixture
def drive(driver, tmp_path):
    "Runs a command line by a plan (see `tests.trust.driver`) in a folder below tmp_path: exit status, stdout, stderr."

    def run(words: list, plan: dict | None = None, folder: str = ".") -> tuple[int, str, str]:
        print(json.dumps([plan, [str(word) for word in words], str(tmp_path / folder)]), file=driver.stdin, flush=True)
        return tuple(json.loads(driver.stdout.readline()))

    return run


@pytest.fixture(scope="session")
def worker():
    yield from served("tests.trust.worker")
