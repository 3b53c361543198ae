"""The record beside a finished notebook, cut short by a full disk or a crash of the machine: no run is planned at all, and the message names no file."""
from _common import *
from crlsr.studies.execution import is_finished
open("t.ipynb", "w").write("{}"); faults = []
for content in ("", '{"digest": "ab', "[]", "null"):
    open("t.json", "w").write(content)
    try: assert is_finished("t.ipynb", "ab") is False
    except Exception as e: faults.append(f"sidecar {content!r}: {type(e).__name__}: {e}")
end(faults)
