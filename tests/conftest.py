"""Shared by all tests: neither data folder nor cache of the user, fixed hypothesis profile, GPU tests skipped with their reason."""
import os
import signal
import tempfile

import hypothesis
import pytest

os.environ.pop("CRLSR_DATA", None)  # the suite has to pass on the embedded photographs alone
_cache = tempfile.TemporaryDirectory(prefix="crlsr-tests-")  # of what was read of files; that of the user is not touched
os.environ["CRLSR_CACHE"] = _cache.name
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl where something else runs
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite started in the background ignores Ctrl-C, and the processes it starts would inherit that: some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # below nohup: go on, but start processes that hear it
    signal.signal(signal.SIGHUP, lambda *_: None)
hypothesis.settings.register_profile("crlsr", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("crlsr")


def pytest_collection_modifyitems(items):
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
