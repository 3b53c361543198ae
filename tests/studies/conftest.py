"""Shared by the tests of runs and studies."""
import json
from pathlib import Path

import pytest

from crlsr.studies import execution
from tests.kernels import Forked


@pytest.fixture
def forked(monkeypatch):
    "Notebooks of this process by kernels that need not import torch."
    monkeypatch.setattr(execution, "_kernel_manager", lambda threads: Forked)


@pytest.fixture
def executed(monkeypatch):
    "Names of what was executed, without kernels."
    calls = []

    def stand_in(notebook, parameters, partial, threads):
        calls.append(parameters.get("name", notebook.stem))
        partial.write_text(notebook.read_text())
        (partial.parent / "results.json").write_text('{"product": 1}') if "name" in parameters else None

    monkeypatch.setattr(execution, "_execute", stand_in)
    return calls


def write_notebook(path: Path, *cells: str) -> Path:
    "A notebook whose first cell holds the parameters."
    made = [{"cell_type": "code", "id": f"cell{i}", "metadata": {"tags": ["parameters"][i:]}, "execution_count": None, "outputs": [], "source": cell}
            for i, cell in enumerate(cells)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
    return path
