"""What `make lab` adds to a user's own settings of Jupyter: a notebook of this project is saved as it is committed, so that git sees real changes only."""
import sys
from datetime import datetime, timezone
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT))

from tests.notebooks import write_clean  # noqa: E402


def clean_after_save(model, os_path, **_):
    "Writes a saved notebook again without counts and metadata of a session; tells Jupyter that this was no stranger."
    path = Path(os_path).resolve()
    if model["type"] == "notebook" and ROOT / "nbs" in path.parents:
        write_clean(path, nbformat.read(path, as_version=4))
        stat = path.stat()
        model |= {"last_modified": datetime.fromtimestamp(stat.st_mtime, timezone.utc), "size": stat.st_size}


c.FileContentsManager.post_save_hook = clean_after_save  # noqa: F821 - Jupyter provides `c`
