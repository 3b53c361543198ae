"""Shared by the cases: a scratch folder, a small picture, the command line in this process. Exit 1 while the fault is there, 0 when it is gone."""
import contextlib, io, os, sys, tempfile
import numpy as np
from PIL import Image

work = tempfile.mkdtemp(prefix="case-")
os.chdir(work)

def picture(height=64, width=64, seed=0):
    r = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    a = np.stack([128 + 100 * np.sin(x / 5 + y / 7), 128 + 100 * np.cos(x / 9), 128 + 80 * np.sin(y / 4)], -1)
    return Image.fromarray((a + r.normal(0, 5, a.shape)).clip(0, 255).astype("uint8"))

def crlsr(*args):
    from crlsr.app.cli import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in args])
    return code, out.getvalue(), err.getvalue()

def end(faults):
    for f in faults:
        print("FAULT:", f)
    print("fault is there" if faults else "gone")
    sys.exit(1 if faults else 0)
