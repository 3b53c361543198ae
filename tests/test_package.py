"""What an installed package promises: light imports, one direction of dependencies, a wheel that works elsewhere."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebooks import ROOT, library_notebooks

ORDER = [p.stem.split("_", 1)[1] for p in library_notebooks() if p.stem != "index"]
NOTEBOOK_ONLY = ("nbdev", "fastcore", "execnb", "ipywidgets", "IPython", "pandas", "cv2", "matplotlib", "tqdm", "papermill",
                 "nbconvert", "nbformat", "nbclient", "torchvision")


def imports(path: Path) -> set[str]:
    "The crlsr modules that a module imports anywhere, also inside functions."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "crlsr"):
            module = (node.module or "").removeprefix("crlsr").lstrip(".")
            found |= {module.split(".")[0]} if module else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("crlsr.")}
    return found & set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_earlier_ones(module):
    later = {m for m in imports(ROOT / "crlsr" / f"{module}.py") if ORDER.index(m) >= ORDER.index(module)}
    assert later == set()


def python(code: str, **kwargs) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_no_module_needs_a_notebook_package():
    python(f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOTEBOOK_ONLY!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Block())
import importlib
for module in {ORDER!r}:
    importlib.import_module("crlsr." + module)
""")


def test_import_is_light_and_names_are_lazy():
    heavy = python("import sys, crlsr; print([m for m in ('torch', 'numpy', 'skimage', 'matplotlib') if m in sys.modules])")
    assert heavy.strip() == "[]"
    assert python("import crlsr; print(crlsr.images.resize.__name__, crlsr.upscale.__name__, crlsr.load_model.__name__)").split() == [
        "resize", "upscale", "load_model"]
    assert "has no attribute 'imagse'" in python("import crlsr\ntry: crlsr.imagse\nexcept AttributeError as e: print(e)")


def test_lazy_names_cover_every_module():
    import crlsr

    assert list(crlsr._MODULES) == ORDER


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The wheel, built from the tracked files, in an environment of its own with the notebook extra; no network."
    wheels = ROOT / ".venv" / "wheelhouse"
    if not wheels.is_dir():
        pytest.skip(f"no wheels in {wheels.relative_to(ROOT)}: `make test` puts them there")
    base = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for file in filter(None, files.stdout.split("\0")):
        target = base / "source" / file
        if (ROOT / file).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / file).read_bytes())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CRLSR_"))}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

    def run(*command, **kwargs):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, cwd=base, **kwargs)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", base / "dist", base / "source")
    (wheel,) = (base / "dist").glob("crlsr-*.whl")
    run(sys.executable, "-m", "venv", base / "venv")
    run(base / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-index", "--find-links", wheels, f"{wheel}[notebooks]")
    return lambda *command: run(base / "venv/bin" / command[0], *command[1:]), base


def test_the_wheel_works_outside_the_checkout(installed):
    run, base = installed
    where = run("python", "-c", "import crlsr; print(crlsr.__file__)")
    assert str(base / "venv") in where and str(ROOT) not in where
    assert "DIV2K" in run("crlsr", "data", "list")
    run("python", "-c", "from crlsr.data import embedded_images; from crlsr.images import write_image; write_image(embedded_images('heldout')['chelsea'], 'chelsea.png')")
    run("crlsr", "degrade", "chelsea.png", "-o", "out", "--preset", "iso:1.2", "--scale", "4")
    assert {p.suffix for p in (base / "out").iterdir()} == {".png", ".json"}
    plan = run("crlsr", "reproduce", "smoke", "--dry-run")
    assert "l1" in plan.lower() and "crl" in plan.lower()
    assert not (base / "runs").exists(), "a dry run writes nothing"
