"""papermill fills braces in paths: a study below a folder with { } in its name cannot run, or goes elsewhere."""
from _common import *
import json
from crlsr.studies.execution import run_notebook
cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {"tags": ["parameters"]}, "outputs": [], "source": "x: int = 1"}
json.dump({"cells": [cell], "metadata": {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}, "nbformat": 4, "nbformat_minor": 5}, open("n.ipynb", "w"))
faults = []
for out in ("runs {v2}/t.ipynb", "runs {x}/t.ipynb", "runs {}/t.ipynb"):
    try: run_notebook("n.ipynb", {"x": 2}, out)
    except RuntimeError as e: faults.append(f"{out}: {e}")
end(faults)
