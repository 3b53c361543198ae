"""What the site is made of, without building it: every notebook and every public name has its page, and what is linked is there."""
import functools
import importlib
import inspect
import json
import os
import re
import sys
import types

import pytest

from tests import notebooks
from tests.house.test_notebooks import broken_links
from tests.notebooks import NBS, ROOT, reading_paths

sys.path.insert(0, str(NBS / "_site"))
import api  # noqa: E402
import stage  # noqa: E402

MODULES = api.modules(ROOT / "crlsr")
TABLE = api.lookup(MODULES)
KINDS = (types.FunctionType, classmethod, staticmethod, property, functools.cached_property)  # of what a class's body defines


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    "The folder that Sphinx would read."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "SOURCE", tmp_path_factory.mktemp("site"))
        stage.stage()
        yield stage.SOURCE


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = ["".join(out.get("data", {}).get("text/markdown", "")) for cell in cells for out in cell.get("outputs", [])]
    return "\n\n".join([*("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), *shown])


def documents(folder):
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*") if path.suffix in (".md", ".rst", ".ipynb")}


def children(page, path):
    "The pages that a page's tables of contents name."
    text = text_of(path)
    blocks = re.findall(r"(?s)```\{toctree\}\n(.*?)```", text) + re.findall(r"(?ms)^\.\. toctree::\n(.*?)(?=^\S|\Z)", text)
    names = [re.sub(r".*<(.+)>", r"\1", line.strip()) for block in blocks for line in block.splitlines() if line.strip() and not line.strip().startswith(":")]
    return {os.path.normpath(os.path.join(os.path.dirname(page), name)) for name in names}


def test_the_table_of_contents_reaches_every_page(sources):
    pages, reached, todo = documents(sources), set(), ["index"]
    while todo:
        page = todo.pop()
        reached.add(page)
        todo += children(page, pages[page]) - reached
    assert reached == pages.keys()


def test_every_notebook_has_a_page(sources):
    assert {notebooks.label(path) for path in notebooks.library_notebooks()} <= documents(sources).keys()
    assert {notebooks.label(path) for path in [*NBS.glob("explore/*.ipynb"), *notebooks.papermill_notebooks()]} <= documents(sources).keys()


def test_every_link_between_pages_leads_to_a_file(sources):
    bad = []
    for page, path in documents(sources).items():
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```|`[^`\n]*`(?!\])", "", text_of(path))):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", link) and not (path.parent / target).exists():
                bad.append(f"{page}: {link}")
    assert bad == []


@pytest.mark.parametrize("path", sorted((NBS / "_site" / "pages").glob("*.md")), ids=lambda path: path.stem)
def test_pages_written_by_hand_link_to_files(path):
    assert broken_links(path) == []


def test_links_lead_to_pages_else_to_the_forge():
    known, file = stage.homes(), ROOT / "data" / "reference" / "README.md"

    def changed(link):
        return stage.relinked(f"[x]({link})", file, "results/findings", known)[4:-1]

    assert changed("../../nbs/10_metrics.ipynb#Recap") == "../10_metrics.ipynb#Recap"
    assert changed("studies/recipe/report.ipynb") == "recipe.ipynb"
    assert changed("../../CHANGELOG.md") == "../changelog.md"
    assert changed("../registry.json") == stage.url("data/registry.json")
    assert changed("studies/shared") == stage.url("data/reference/studies/shared", "tree")
    assert [changed(link) for link in ("gone.md", "#here", "https://example.org/a")] == ["gone.md", "#here", "https://example.org/a"]
    assert stage.relinked("`[x](studies/recipe/report.ipynb)`", file, "results/findings", known) == "`[x](studies/recipe/report.ipynb)`"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_public_name_is_on_its_page(module):
    "What Python says of an imported module, against what its page says."
    imported, page = importlib.import_module(f"crlsr.{module.name}"), api.module_page(module)
    entries = dict(re.findall(r"(?ms)^\.\. py:(?:data|class|function):: (\w+)(.*?)(?=^\.\. py:|\Z)", page))
    assert list(entries) == imported.__all__
    for name, text in entries.items():
        value = getattr(imported, name)
        if inspect.isfunction(value) and "__wrapped__" not in vars(value):
            parameters = inspect.signature(value).parameters
            for parameter in parameters:
                assert re.search(rf"(?m)^   ``\**{parameter}`` : ", text), f"{name}: {parameter}"
            assert re.findall(r"(\w+)(?==|[,)])", re.sub(r"=(?:[^,()]|\([^()]*\))+", "", text.splitlines()[0])) == list(parameters), name
        if inspect.isclass(value):
            methods = {n for n, m in vars(value).items() if isinstance(m, KINDS) and m.__doc__ and (n[0] != "_" or n == "__call__")}
            assert set(re.findall(r"(?m)^   \.\. py:\w+:: (\w+)", text)) == methods, name
        assert "#cell-" in text, f"{name}: no source"


def test_sections_of_a_docstring():
    text, parts = api.sections("Sum.\n\nMore.\n\nParameters\n----------\nx : int, default 1\n    one\n    two\n\nReturns\n-------\nint\n    sum")
    assert text == "Sum.\n\nMore."
    assert parts == {"Parameters": [("x : int, default 1", "one two")], "Returns": [("int", "sum")]}


def test_text_says_itself_in_restructuredtext():
    assert api.escaped("a*b_ |c| `x_` <d>: e\\f") == r"a\*b\_ \|c\| ``x_`` \<d\>\: e\\f"


@pytest.mark.parametrize("word, near, module", [
    ("info_nce", {}, "contrast.infonce"),
    ("info_nce()", {}, "contrast.infonce"),
    ("crlsr.contrast.info_nce", {}, "contrast.infonce"),
    ("images.resize", {}, "images.scaling"),
    ("resize", {"resize": "images"}, "images.scaling"),
    ("ModelConfig", {}, "model.config"),
    ("resize", {}, None),  # a plain word on a page that does not import it
    ("info_nce(q, k)", {}, None),
    ("no_such_name", {}, None),
    ("info_nce", {"info_nce": "viz"}, None),  # imported from elsewhere
])
def test_what_a_word_in_backticks_means(word, near, module):
    symbol = api.meaning(word, TABLE, near)
    assert (symbol and symbol.module) == module


def test_a_name_of_two_modules_is_left_alone():
    symbol = TABLE["info_nce"][0]
    assert api.meaning("info_nce", {"info_nce": [symbol, symbol._replace(module="viz")]}, {}) is None


def test_every_table_of_choices_is_collected(sources):
    page = (sources / "choices.md").read_text(encoding="utf-8")
    for path in notebooks.library_notebooks():
        text = text_of(path)
        rows = re.findall(r"(?m)^\| item \|.*why \|$", text)
        if re.search(r"What the source leaves open", text) and rows:
            assert f"]({notebooks.label(path)}.ipynb)" in page, path
    assert len(re.findall(r"(?m)^\| item \|", page)) >= 30


def test_colab_is_offered_on_the_learners_path_only(sources):
    path = reading_paths()["LEARNER"]
    assert path[0] == "00_start/01_method" and len(path) >= 8
    offering = {page for page, file in documents(sources).items() if file.suffix == ".ipynb" and "colab.research.google.com" in text_of(file)}
    assert offering == {*path}


def test_notebooks_are_shown_with_all_their_outputs(sources):
    for page, path in stage.notebooks().items():
        ours, shown = ([cell.get("outputs", []) for cell in nb["cells"] if cell.get("outputs")]
                       for nb in (notebooks.read(path), json.loads((sources / f"{page}.ipynb").read_text(encoding="utf-8"))))
        assert [[sorted(out.get("data", ["text"])) for out in outs] for outs in ours] == [[sorted(out.get("data", ["text"])) for out in outs] for outs in shown]


def test_solutions_are_folded_and_not_in_the_gallery(sources):
    for path in notebooks.solution_notebooks():
        page = notebooks.label(path)
        cells = ["".join(cell["source"]) for cell in json.loads((sources / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]]
        begins = [n for n, text in enumerate(cells) if text.startswith('<details class="solution">')]
        ends = [n for n, text in enumerate(cells) if text == "</details>"]
        headings = [n for n, text in enumerate(cells) if text.startswith("### ")]
        ours = [notebooks.source(cell) for cell in notebooks.read(path)["cells"]]
        assert len(begins) == len(ends) == len(headings) == sum(text.startswith("**Solution.**") for text in ours)
        assert all(heading < begin < end for heading, begin, end in zip(headings, begins, ends))
        assert all(end < heading for end, heading in zip(ends, headings[1:])) and ends[-1] == len(cells) - 1
        assert f'"{page}.html"' not in (sources / "gallery.md").read_text(encoding="utf-8")


def test_the_workflow_publishes_what_make_builds():
    workflow, make = ((ROOT / name).read_text(encoding="utf-8") for name in (".github/workflows/pages.yml", "Makefile"))
    assert "run: make docs" in workflow and f"path: {re.search('SITE +:= (.+)', make)[1]}\n" in workflow
