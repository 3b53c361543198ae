"""papermill formats output paths: an output folder with {…} in its name fails, or writes elsewhere."""
import json, os, sys, tempfile
from pathlib import Path
from crlsr.studies.execution import run_notebook
W = Path(tempfile.mkdtemp())
cell = lambda s, t=(): {"cell_type": "code", "metadata": {"tags": list(t)} if t else {}, "source": s, "outputs": [], "execution_count": None, "id": os.urandom(4).hex()}
(W / "n.ipynb").write_text(json.dumps({"cells": [cell('run_dir: str = "x"', ["parameters"]), cell("1")], "metadata": {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}))
try:
    run_notebook(W / "n.ipynb", {"run_dir": "y"}, W / "runs {a}" / "o.ipynb"); sys.exit(not (W / "runs {a}" / "o.ipynb").exists())
except Exception as error:
    print(type(error).__name__, error); sys.exit(1)
