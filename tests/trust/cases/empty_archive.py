"""An archive without members: StopIteration instead of a sentence."""
import sys, tarfile, tempfile
from pathlib import Path
from crlsr.data.sets import unpack
W = Path(tempfile.mkdtemp()); tarfile.open(W / "e.tgz", "w:gz").close()
try:
    unpack(W / "e.tgz", {"X": "."}, W / "out")
except ValueError as error:
    print(error); sys.exit(0)
except BaseException as error:
    print(type(error).__name__, error); sys.exit(1)
