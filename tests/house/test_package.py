"""What an installed package promises: light imports, one direction of dependencies, a wheel that works elsewhere."""
import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from crlsr.model.files import BUNDLED
from tests.notebooks import ROOT, exporting_notebooks, module_of, settings

ORDER = [module_of(path) for path in exporting_notebooks()]  # every module, in reading order
CHAPTERS = list(dict.fromkeys(module.split(".")[0] for module in ORDER))
FACES = [chapter for chapter in CHAPTERS if (ROOT / "crlsr" / chapter).is_dir()]
FLOORS = 8  # of chapters, at most: how long the longest chain of imports between them is
NOTEBOOK_ONLY = ("nbdev", "fastcore", "execnb", "ipywidgets", "IPython", "pandas", "cv2", "matplotlib", "tqdm", "papermill",
                 "nbconvert", "nbformat", "nbclient", "torchvision")


def file_of(module: str) -> Path:
    return ROOT.joinpath("crlsr", *module.split(".")).with_suffix(".py")


def imports(module: str) -> set[tuple[str, str]]:
    "What a module imports from crlsr anywhere, also inside functions: (module or face, name)."
    found = set()
    for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "crlsr"):
            parent = ["crlsr", *module.split(".")][: -node.level] if node.level else []
            path = [*parent, *(node.module or "").split(".")] if node.module else parent
            found |= {(".".join(path[1:]), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name.removeprefix("crlsr."), "") for alias in node.names if alias.name.startswith("crlsr.")}
    return {(path, name) for path, name in found if path}  # the package itself has a version and nothing else


def place(path: str) -> int:
    "Where a module stands in the order; a face stands where the last part of its chapter does."
    return ORDER.index(path) if path in ORDER else max(i for i, module in enumerate(ORDER) if module.startswith(path + "."))


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_earlier_ones(module):
    assert {path for path, _ in imports(module) if place(path) >= ORDER.index(module)} == set()


@pytest.mark.parametrize("module", ORDER)
def test_private_names_stay_in_their_module(module):
    assert {(path, name) for path, name in imports(module) if name.startswith("_")} == set()


def test_no_class_exists_only_to_be_inherited_once():
    text = "\n".join(file_of(module).read_text(encoding="utf-8") for module in ORDER)
    classes = [node for node in ast.walk(ast.parse(text.replace("from __future__ import annotations", ""))) if isinstance(node, ast.ClassDef)]
    heirs = {node.name: [heir for heir in classes if node.name in map(ast.unparse, heir.bases)] for node in classes}
    assert [name for name, of in heirs.items() if len(of) == 1 and len(re.findall(rf"\b{name}\b", text)) <= 2] == []


def test_the_model_asks_for_no_attribute_that_may_be_missing():
    for module in ORDER:
        if module.startswith("model."):
            assert "hasattr(" not in file_of(module).read_text(encoding="utf-8"), module


def test_every_import_is_a_declared_requirement():
    "What another package happens to bring today it may leave out tomorrow; what an extra brings is imported inside the function that needs it."
    distributions, ours = importlib.metadata.packages_distributions(), {*sys.stdlib_module_names, "crlsr", *NOTEBOOK_ONLY}
    declared = {re.split("[<>=]", requirement)[0].lower() for requirement in settings()["requirements"].split()}
    for module in ORDER:
        for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - ours:
                assert {found.lower().replace("_", "-") for found in distributions[name]} & declared, f"{module}: {name}"


def chapter_graph() -> dict[str, set[str]]:
    "Which chapters each chapter imports."
    graph: dict[str, set[str]] = {chapter: set() for chapter in CHAPTERS}
    for module in ORDER:
        graph[module.split(".")[0]] |= {path.split(".")[0] for path, _ in imports(module)} - {module.split(".")[0]}
    return graph


def test_chapters_stand_on_few_floors_without_a_circle():
    graph, floors = chapter_graph(), {}
    while len(floors) < len(graph):
        ready = [c for c in graph if c not in floors and graph[c] <= floors.keys()]
        assert ready, f"a circle among {sorted(graph.keys() - floors.keys())}"
        floors |= {c: 1 + max((floors[below] for below in graph[c]), default=0) for c in ready}
    assert max(floors.values()) <= FLOORS, floors


@pytest.mark.parametrize("chapter", FACES)
def test_a_face_gives_every_name_and_shadows_no_part(chapter):
    face = importlib.import_module(f"crlsr.{chapter}")
    parts = {module.split(".")[1] for module in ORDER if module.startswith(chapter + ".")}
    assert parts <= set(face.__all__) == set(dir(face))
    for name in face.__all__:
        assert isinstance(getattr(face, name), types.ModuleType) == (name in parts), f"crlsr.{chapter}.{name}"


def python(code: str, **kwargs) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_networks_run_where_nothing_that_teaches_can_be_imported():
    shape = python("""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("crlsr.contrast", "crlsr.refinement", "crlsr.model", "crlsr.training")):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
import torch
from crlsr.networks import NetworkConfig, Restorer
print(*Restorer(NetworkConfig(scale=3, num_feat=8, num_block=2))(torch.rand(1, 3, 10, 12)).shape)
""")
    assert shape.split() == ["1", "3", "30", "36"]


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
    faces = "".join(f"; import crlsr.{face}" for face in FACES)
    heavy = python(f"import sys, crlsr{faces}; print([m for m in ('torch', 'numpy', 'skimage', 'matplotlib') if m in sys.modules])")
    assert heavy.strip() == "[]"
    assert python("import crlsr; print(crlsr.images.resize.__name__, crlsr.upscale.__name__, crlsr.load_model.__name__)").split() == [
        "resize", "upscale", "load_model"]
    assert "attribute imagse" in python("import crlsr\ntry: crlsr.imagse\nexcept AttributeError as e: print(e)")


def test_dir_lists_chapters_and_names_without_loading_them():
    faces = "; ".join(f"import crlsr.{face}" for face in FACES)
    seen = python(f"import sys, crlsr; {faces}; print(*dir(crlsr)); print(*dir(crlsr.contrast)); print([m for m in ('torch', 'numpy') if m in sys.modules])").splitlines()
    assert set(seen[0].split()) == {*CHAPTERS, "upscale", "load_model"} and seen[2] == "[]"
    assert {"infonce", "info_nce", "BidirectionalContrastiveLoss", "PositionNegatives"} <= set(seen[1].split())


def test_a_folder_called_crlsr_hides_nothing(tmp_path):
    "Started from the parent of a checkout called crlsr, Python sees a folder of that name first: as an empty package, where an installation only adds a hook."
    (tmp_path / "crlsr" / "nbs").mkdir(parents=True)
    assert python("import crlsr.core; print(crlsr.__version__)", cwd=tmp_path).strip() == settings()["version"]


def test_the_package_can_be_run():
    assert python("import runpy, sys; sys.argv = ['crlsr', '--version']\ntry: runpy.run_module('crlsr', run_name='__main__')\nexcept SystemExit as end: sys.exit(end.code)"
                  ).strip() == f"crlsr {settings()['version']}"


def test_lazy_names_cover_every_chapter():
    import crlsr

    assert set(crlsr.__all__) == {*CHAPTERS, "upscale", "load_model"}


ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CRLSR_"))}


def run(*command, cwd, env=ENVIRONMENT) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A copy of the project without what git ignores; of an unpacked source distribution, which has no git, everything that is no product."
    target = tmp_path_factory.mktemp("project") / "source"
    if (ROOT / ".git").exists():
        files = [Path(name) for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0") if name]
    else:
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and not {".venv", "__pycache__", ".hypothesis", "crlsr.egg-info"} & set(path.parts)]
    for file in files:
        if (ROOT / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes((ROOT / file).read_bytes())
    return target


@pytest.fixture(scope="module")
def wheel(source):
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", source.parent / "dist", source, cwd=source.parent)
    (wheel,) = (source.parent / "dist").glob("crlsr-*.whl")
    return wheel


def test_the_wheel_says_where_the_project_is_and_that_it_is_typed(wheel):
    with zipfile.ZipFile(wheel) as file:
        assert "crlsr/py.typed" in file.namelist()
        metadata = email.message_from_bytes(file.read(next(name for name in file.namelist() if name.endswith("/METADATA"))))
    url = f"https://github.com/{settings()['user']}/{settings()['repo']}"
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert urls["Source"] == url and {"Issues", "Changelog", "Notebooks"} <= urls.keys() and all(value.startswith(url) for value in urls.values())
    classifiers = metadata.get_all("Classifier")
    assert {"Development Status :: 3 - Alpha", "Typing :: Typed", "Intended Audience :: Science/Research"} <= set(classifiers) and len(set(classifiers)) == len(classifiers)
    links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert links and not [link for link in links if not link.startswith(("https://", "#"))], "a link that leads nowhere from outside the repository"
    ours = {link for link in links if link.startswith("https://github.com/")}
    assert ours and all(link.startswith(url + "/") for link in ours), "the README and settings.ini name one address"


def test_models_of_the_package_are_in_the_wheel(wheel):
    "Whichever there are, whole: a folder of the package that is no module is easily left out."
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if name.startswith("crlsr/models/")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "crlsr/models").rglob("*") if path.is_file()}


def test_the_source_distribution_is_the_project_and_can_test_itself(source, tmp_path):
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=source)
    (archive,) = tmp_path.glob("crlsr-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (project,) = (path for path in tmp_path.iterdir() if path.is_dir())
    expected = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.relative_to(source).parts[0] not in (".ci", ".gitignore", ".gitattributes", "build", "crlsr.egg-info")}
    assert expected and not [file for file in expected if not (project / file).is_file()]
    env = ENVIRONMENT | {"PYTHONPATH": str(project)}
    assert run(sys.executable, "-c", "import crlsr; print(crlsr.__file__)", cwd=project, env=env).strip() == str(project / "crlsr" / "__init__.py")
    tests = ["tests/evaluation/test_comparison.py", "tests/house/test_reproduce.py"]
    assert " passed" in run(sys.executable, "-m", "pytest", "-q", *tests, cwd=project, env=env)


def brought(wheel: Path, extra: str) -> dict[str, importlib.metadata.Distribution]:
    "What an installation of the wheel with an extra brings: the distributions that it asks for, as they are installed here, and those that these ask for."
    with zipfile.ZipFile(wheel) as file:
        metadata = email.message_from_bytes(file.read(next(name for name in file.namelist() if name.endswith("/METADATA"))))
    asked, found, seen = [(text, extra) for text in metadata.get_all("Requires-Dist")], {}, set()
    while asked:
        text, extra = asked.pop()
        requirement = Requirement(text)
        if (text, extra) in seen or requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        seen.add((text, extra))
        found[requirement.name] = importlib.metadata.distribution(requirement.name)
        asked += [(each, name) for name in ("", *requirement.extras) for each in found[requirement.name].requires or ()]
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "The wheel in an environment of its own, beside links to what it asks for with the notebook extra and to nothing else; pip finds all of it there, or would need the network."
    base = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "venv", "--without-pip", base / "venv", cwd=base)
    site = next((base / "venv").glob("lib/python*/site-packages"))
    for of in [*brought(wheel, "notebooks").values(), importlib.metadata.distribution("pip")]:
        for name in {file.parts[0] for file in of.files} - {"..", "__pycache__"}:
            if not (site / name).exists():  # several may share a namespace
                (site / name).symlink_to(of.locate_file(name))
    run(base / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-index", f"{wheel}[notebooks]", cwd=base)
    return lambda *command: run(base / "venv/bin" / command[0], *command[1:], cwd=base), base


USED = """
import sys, crlsr
from crlsr.app.cli import main
from crlsr.data import embedded_images
from crlsr.images import write_image
write_image(embedded_images("heldout")["chelsea"][:, :96, :128], "chelsea.png")
print(crlsr.__file__)
for line in sys.argv[1:]:
    print("---", flush=True)
    assert main(line.split()) == 0, line
"""


def test_the_wheel_works_outside_the_checkout(installed):
    run, base = installed
    assert 'pip install "crlsr[dev]"' in run("crlsr", "doctor")
    models = [model for model in BUNDLED if (ROOT / "crlsr/models" / model).is_dir()]  # where this version brings it: found by its name, as the default of its scale, without a network
    lines = ["data list", "degrade chelsea.png -o out --preset iso:1.2 --scale 4", "reproduce smoke --dry-run", *(f"upscale out/chelsea.png -o {model}.png --scale {model[-1]}" for model in models)]
    where, sets, _, plan, *_ = run("python", "-c", USED, *lines).split("---\n")
    assert str(base / "venv") in where and str(ROOT) not in where
    assert "DIV2K" in sets and "l1" in plan.lower() and "crl" in plan.lower()
    assert {p.suffix for p in (base / "out").glob("[!.]*")} == {".png", ".json"}
    assert all((base / f"{model}.png").stat().st_size > 0 for model in models)
    assert not (base / "runs").exists(), "a dry run writes nothing"
