"""A small Sphinx extension: names in backticks lead to their API page, pictures have a text, cells an address, MathJax comes with the site."""
from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

import api
import stage

# Of MathJax only what these pages load: the component itself, its fonts, and the macros that it fetches when a formula needs them.
MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")


def read(app: Sphinx) -> None:
    "The table of public names, once per build, and what each notebook defines or imports."
    found = api.modules(stage.ROOT / "crlsr")
    app.crlsr_table, app.crlsr_known = api.lookup(found), stage.known_names(found)


def cross_link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    "Makes links of the names in backticks."
    for literal in list(doctree.findall(nodes.literal)):
        above = literal.parent
        while above is not None and not isinstance(above, (nodes.reference, nodes.title)):
            above = above.parent
        if above is None:
            symbol = api.meaning(literal.astext(), app.crlsr_table, app.crlsr_known.get(docname, {}))
            if symbol:
                uri = app.builder.get_relative_uri(docname, symbol.page) + "#" + symbol.anchor
                link = nodes.reference("", "", internal=True, refuri=uri, classes=["symbol"], reftitle=symbol.anchor)
                literal.replace_self(link)
                link += literal


def alt_text(image: nodes.image) -> str:
    "The first sentence of the prose after a picture's cell, two where that is a word or two; where none follows, or it leads on to what comes next, the heading above."
    cell = image
    while cell.get("nb_element") != "cell_code":
        cell = cell.parent
    section = cell.parent
    for after in section[section.index(cell) + 1:]:
        if isinstance(after, nodes.paragraph):
            said = re.match(r".{,29}$|.{29,}?(?:[.:!?](?=\s)|$)", " ".join(after.astext().split()))[0]
            if not said.endswith(":"):
                return said
        if isinstance(after, nodes.paragraph) or after.get("nb_element") == "cell_code" or isinstance(after, nodes.section):
            break
    while section is not None and not isinstance(section, nodes.section):
        section = section.parent
    return "Picture: " + (section[0].astext() if section else "")


def annotate(app: Sphinx, doctree: nodes.document) -> None:
    "Cells get their id as an address, pictures their text."
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code" and "cell_id" in cell.get("cell_metadata", {}):
            cell["ids"].append(f"cell-{cell['cell_metadata']['cell_id']}")
            for image in cell.findall(nodes.image):
                image.attributes.setdefault("alt", alt_text(image))


def vendor_mathjax(app: Sphinx, error: Exception | None) -> None:
    "Copies MathJax from its package into the finished site."
    if error is None and app.builder.format == "html":
        package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
        for part in MATHJAX:
            goal = Path(app.outdir) / "_static" / "mathjax" / part
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(package / part, goal) if (package / part).is_file() else shutil.copytree(package / part, goal, dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", read)
    app.connect("doctree-read", annotate)
    app.connect("doctree-resolved", cross_link)
    app.connect("build-finished", vendor_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
