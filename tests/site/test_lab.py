"""Opening, running and saving a notebook in `make lab` leaves its bytes as they were committed."""
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.notebooks import NBS, ROOT

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/lab")
SAVED = "window.jupyterapp.shell.currentWidget.context.model.dirty === false"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab as `make lab` starts it, in a copy of the project; a page in Chromium, and where the copy is."
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    copy = tmp_path_factory.mktemp("project")
    shutil.copytree(NBS, copy / "nbs", ignore=shutil.ignore_patterns("_build", ".ipynb_checkpoints", "__pycache__"))
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=lambda folder, names: [n for n in names if n not in ("__init__.py", "notebooks.py")])
    shutil.copy(ROOT / "settings.ini", copy)
    private = {name: str(copy / "private" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "CRLSR_CACHE")}
    found = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    setting = re.search(r'JUPYTER_CONFIG_PATH="\$\(CURDIR\)/(\S+)"', (ROOT / "Makefile").read_text())[1]
    env = {**os.environ, **private, "PYTHONPATH": found, "JUPYTER_CONFIG_PATH": str(copy / setting), "OMP_NUM_THREADS": "1"}
    options = ["--expose-app-in-browser", "--no-browser", "--ServerApp.token=", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    with open(copy / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=copy, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while not (address := ADDRESS.search((copy / "lab.log").read_text())):  # on the first port that is free
            assert server.poll() is None and time.monotonic() < deadline, (copy / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
        with playwright.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(180_000)
            yield page, f"{address[0]}/tree", copy
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def run_and_save(page, address):
    "Opens a notebook, runs all its cells and saves it, twice: the second time Jupyter must not take the hook for a stranger."
    page.goto(f"{address}?reset")  # alone, not beside the one before
    page.wait_for_function("""name => {
        const shown = window.jupyterapp?.shell?.currentWidget
        return shown?.context?.path.endsWith(name) && shown.context.isReady && shown.sessionContext?.session?.kernel?.status === 'idle'
    }""", arg=address.rpartition("/nbs/")[2])
    page.evaluate("() => { window.ran = null; window.jupyterapp.commands.execute('notebook:run-all-cells').then(well => { window.ran = well ? 'well' : 'with an error' }) }")
    page.wait_for_function("window.ran")
    counts = page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code').map(c => c.model.executionCount)")
    assert counts and all(counts), f"every cell ran: ended {page.evaluate('window.ran')}"
    for _ in range(2):
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_function(SAVED)
        assert page.locator(".jp-Dialog").count() == 0


@pytest.mark.parametrize("name", [
    "01_core/02_files",
    pytest.param("04_degradation/01_kernels", marks=pytest.mark.slow),
    pytest.param("07_contrast/01_infonce", marks=pytest.mark.slow),
])
def test_running_and_saving_leaves_the_bytes(lab, name):
    page, address, copy = lab
    ours, saved = (path.joinpath("nbs", name).with_suffix(".ipynb") for path in (ROOT, copy))
    before = saved.stat().st_mtime_ns
    run_and_save(page, f"{address}/nbs/{name}.ipynb")
    assert saved.stat().st_mtime_ns > before and saved.read_bytes() == ours.read_bytes()
