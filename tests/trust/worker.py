"""One process that runs command lines for the fuzz tests: a JSON list of words a line on stdin, a JSON row [exit status, stderr, seconds of computing] a line on stdout. Its address space is bounded
by what it has after loading everything, and 2 GB more."""
import contextlib
import io
import json
import resource
import sys
import time

import torch

import crlsr.app.batch  # noqa: F401 - loaded before the limit is drawn
import crlsr.evaluation.scoring  # noqa: F401
import crlsr.studies.running  # noqa: F401
import crlsr.training  # noqa: F401
from crlsr.app.cli import main

torch.set_num_threads(1)
torch.rand(64, 64) @ torch.rand(64, 64)
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 10**9,) * 2)
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(json.loads(line))
        except BaseException as error:  # noqa: BLE001 - told to the test
            code = f"{type(error).__name__}: {error}"
    print(json.dumps([code, err.getvalue(), time.process_time() - start]), flush=True)
