"""Writes what Sphinx reads: the notebooks as they are committed, and the pages made from them. `python nbs/_site/stage.py` alone writes it, too."""
from __future__ import annotations

import ast
import base64
import json
import os
import re
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT, NBS = SITE.parents[1], SITE.parent
sys.path[:0] = [str(SITE), str(ROOT)]

import api  # noqa: E402
from tests.notebooks import exporting_notebooks, library_notebooks, module_of, read, reading_paths, settings, source  # noqa: E402

SOURCE = SITE / "_build" / "source"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
OPEN = "leaves open"  # of the headings above the tables of choices
CHOICES = re.compile(r"(?m)^\| *item *\|.*\| *why *\|\n\|[-| :]+\|\n(?:\|.*\n?)+")


def url(path: Path | str, kind: str = "blob") -> str:
    "Where a file of the project can be read by those who have no checkout."
    s = settings()
    return f"https://github.com/{s['user']}/{s['repo']}/{kind}/{s['branch']}/{Path(path).as_posix()}"


def notebooks() -> dict[str, Path]:
    "Every notebook that has a page: its name there -> file."
    found = [*library_notebooks(), *NBS.glob("[0-9]*/[a-z]*.ipynb"), *NBS.glob("[a-z]*/*.ipynb")]
    return {path.relative_to(NBS).with_suffix("").as_posix(): path for path in sorted({*found}) if ".partial" not in path.name}


def texts() -> dict[str, Path]:
    "Every text that has a page as it stands: name -> file."
    return {"changelog": ROOT / "CHANGELOG.md", "results/findings": ROOT / "data" / "reference" / "README.md",
            **{page.stem: page for page in sorted((SITE / "pages").glob("*.md"))}}


def executed() -> dict[str, Path]:
    "Notebooks that were executed elsewhere and are shown without their code: the report of each study."
    return {f"results/{path.parent.name}": path for path in sorted((ROOT / "data" / "reference" / "studies").glob("*/report.ipynb"))}


def homes() -> dict[Path, str]:
    "Which page shows a file, for links to it."
    files = {path.resolve(): name for pages in (notebooks(), texts(), executed()) for name, path in pages.items()}
    return files | {path.with_suffix(".html"): name for path, name in files.items()}


# ---- links and pictures

def relinked(text: str, file: Path, page: str, known: dict[Path, str]) -> str:
    "The text of `file` with links as they lead from its page: to other pages, else to the project's files on the forge."
    def change(match: re.Match) -> str:
        mark, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        goal = (file.parent / path).resolve()
        if re.match(r"[a-z]+:", target) or not path or not goal.exists():
            return match[0]  # Sphinx says which of them leads nowhere
        if mark and goal.is_file():
            copy = SOURCE / "_files" / goal.relative_to(ROOT).as_posix().replace("/", "_")
            write(copy, goal.read_bytes())
            return f"![{label}]({os.path.relpath(copy, (SOURCE / page).parent)})"
        if goal in known:
            return f"[{label}]({os.path.relpath(known[goal], Path(page).parent)}{suffix(known[goal])}{hash_}{anchor})"
        return f"[{label}]({url(goal.relative_to(ROOT), 'blob' if goal.is_file() else 'tree')}{hash_}{anchor})"

    parts = re.split(r"(?s)(```.*?```|`[^`\n]*`(?!\]))", text)  # what is code stays
    return "".join(part if n % 2 else LINK.sub(change, part) for n, part in enumerate(parts))


def suffix(page: str) -> str:
    return ".md" if page in texts() else ".ipynb"


def write(path: Path, data: str | bytes) -> None:
    "Writes a file where it differs, so that Sphinx reads again only what changed."
    data = data.encode() if isinstance(data, str) else data
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    written.add(path)


written: set[Path] = set()


# ---- notebooks

def markdown(text: str, **metadata: object) -> dict:
    return {"cell_type": "markdown", "metadata": metadata, "source": text}


def lead(page: str, path: Path) -> str:
    "The line below a notebook's title: what it defines, where its source is, and Colab for the learner's path."
    file = path.relative_to(ROOT)
    parts = [f"[Source on GitHub]({url(file)})"]
    if path in exporting_notebooks():
        module = module_of(path)
        parts.insert(0, f"Defines [`crlsr.{module}`]({'../' * page.count('/')}api/{module}.rst)")
    if page.startswith("explore/"):
        parts.insert(0, "To play with it, run `make lab` and open it there: this page shows its text and its code")
    text = ". ".join(parts) + "."
    if page in reading_paths()["LEARNER"]:
        s = settings()
        colab = f"https://colab.research.google.com/github/{s['user']}/{s['repo']}/blob/{s['branch']}/{file.as_posix()}"
        badge = "../" * page.count("/") + "_static/colab.svg"
        text += (f' <a class="colab" href="{colab}"><img src="{badge}" alt="Open in Colab" class="dark-light"></a>'
                 f" ([how]({'../' * page.count('/')}colab.md))")
    return text


def staged(nb: dict, page: str, path: Path, known: dict[Path, str]) -> dict:
    "A notebook as its page shows it: links that lead somewhere, no directives of the export, cells with their ids."
    cells, solutions = [], path.stem == "solutions"  # their answers open on a click
    for cell in nb["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            cells.append(markdown(relinked(text, path, page, known), cell_id=cell.get("id")))
            continue
        if text.startswith("#| default_exp"):
            continue
        setup = solutions and len(cells) < 4
        aside = not setup and cell["metadata"].get("jupyter", {}).get("source_hidden", False)  # folded in JupyterLab, too
        kinds = {"exported": text.startswith("#| export"), "hide-cell": setup, "remove-input" if page == "index" else "hide-input": aside}
        tags = [*cell["metadata"].get("tags", []), *(tag for tag, holds in kinds.items() if holds)]
        outputs = json.loads(json.dumps(cell.get("outputs", [])))
        for out in outputs:
            if shown := out.get("data", {}).get("text/markdown"):
                out["data"]["text/markdown"] = relinked("".join(shown), path, page, known)
        cells.append({**cell, "source": re.sub(r"\A#\| export\n", "", text), "outputs": outputs,
                      "metadata": {"tags": tags, "cell_id": cell.get("id", len(cells))}})
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return {**nb, "cells": folded(cells) if solutions else cells, "metadata": {**nb["metadata"], "language_info": language}}


def folded(cells: list[dict]) -> list[dict]:
    "The cells of solutions, each answer between tags that open on a click: from the cell that begins `**Solution.**` to the next heading."
    found, opened = [], False
    for cell in [*cells, markdown("#")]:
        text = source(cell) if cell["cell_type"] == "markdown" else ""
        if opened and text.startswith("#"):
            found.append(markdown("</details>"))
            opened = False
        if text.startswith("**Solution.**"):
            found.append(markdown('<details class="solution"><summary>Solution</summary>'))
            cell = {**cell, "source": text.removeprefix("**Solution.** ")}
            opened = True
        found.append(cell)
    return found[:-1]


def stage_notebook(page: str, path: Path, known: dict[Path, str]) -> None:
    nb = staged(read(path), page, path, known)
    if page in executed():
        nb["cells"][0]["source"] = f"# {path.parent.name}\n> {json.loads((path.parent / 'study.json').read_text(encoding='utf-8'))['question']}"
        for cell in nb["cells"]:
            cell["metadata"]["tags"] = ["remove-input"] if cell["cell_type"] == "code" else []
    else:
        nb["cells"].insert(1, markdown(lead(page, path)))
    if page == "index":
        nb["cells"].append(markdown(toc()))
    for number, cell in enumerate(nb["cells"]):
        cell["id"] = f"cell{number}"
    write(SOURCE / f"{page}.ipynb", json.dumps(nb, indent=1, ensure_ascii=False))


# ---- pages made from the notebooks

def chapters() -> dict[str, list[str]]:
    "Folder -> the pages in it, in reading order; a chapter of one notebook is a folder of its own name without pages."
    found: dict[str, list[str]] = {}
    for page in notebooks():
        folder, _, part = page.partition("/")
        if page != "index":
            found.setdefault(folder, [])
            found[folder] += [page] if part else []
    return found


def about(page: str) -> str:
    "The description line of a notebook."
    lines = source(read(notebooks()[page])["cells"][0]).splitlines()
    return lines[1].removeprefix("> ") if len(lines) > 1 else ""


def chapter_about(name: str) -> str:
    "What the index says of a chapter."
    for cell in read(NBS / "index.ipynb")["cells"]:
        if cell["cell_type"] == "code" and source(cell).startswith("ABOUT ="):
            return ast.literal_eval(ast.parse(source(cell)).body[0].value).get(name, "")
    raise ValueError("index.ipynb: no cell begins with 'ABOUT =', the table of the chapters")


def chapter_page(folder: str, pages: list[str]) -> str:
    "A chapter's own page: what it is about, and its notebooks."
    number, _, name = folder.rpartition("_") if folder[0].isdigit() else ("", "", folder)
    said = {"explore": "Notebooks to play with, in JupyterLab.", "reproduce": "Papermill notebooks that train, diagnose and report; `crlsr reproduce` runs them."}
    intro = said.get(folder) or chapter_about(name)
    rows = "\n".join(f"| [{page.split('/')[1]}]({page.split('/')[1]}.ipynb) | {about(page)} |" for page in pages)
    entries = "\n".join(page.split("/")[1] for page in pages)
    heading = f"{number} {name}".strip() if number else name.capitalize()
    intro = intro[0].upper() + intro[1:] + ("" if intro.endswith(".") else ".") if intro else ""
    return f"# {heading}\n\n{intro}\n\n| notebook | what it is about |\n| --- | --- |\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


def toc() -> str:
    "The table of contents, from the folders."
    numbered = [f"{folder}/index" if pages else f"{folder.replace('_', ' ')} <{folder}>" for folder, pages in chapters().items() if folder[0].isdigit()]
    other = [f"{folder}/index" for folder, pages in chapters().items() if not folder[0].isdigit()]
    parts = {
        "Start": numbered[:1],
        "Chapters": numbered[1:],
        "Play and reproduce": other,
        "Results": ["results/findings", *executed(), "gallery", "choices"],
        "Reference": ["notation", "api/index", "colab", "contributing", "changelog"],
    }
    return "\n".join(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n" for caption, pages in parts.items())


def choices() -> str:
    "What the paper says and what we chose: the tables of all notebooks, where they stand there."
    lines = ["# What the paper says, what we chose\n> Every choice that the source leaves open, collected from the notebooks, each with its reason",
             "A chosen default is an answer that could have been another: most can be changed by an option, and the notebook behind a heading says how."]
    known, chapter = homes(), ""
    for page, path in notebooks().items():
        tables = [relinked(table.strip(), path, "choices", known) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"
                  for table in CHOICES.findall(source(cell) + "\n")]
        if tables and page.split("/")[0] != chapter:
            chapter = page.split("/")[0]
            lines.append(f"## {chapter.replace('_', ' ')}")
        if tables:
            title = source(read(path)["cells"][0]).splitlines()[0].removeprefix("# ")
            lines += [f"### [{title}]({page}.ipynb)", *tables]
    return "\n\n".join(lines) + "\n"


def section(path: Path, heading: str) -> str:
    "The text below a heading of a notebook."
    cell = next(source(cell) for cell in read(path)["cells"] if source(cell).startswith(f"## {heading}\n"))
    return cell.split("\n", 1)[1].strip()


def gallery() -> str:
    "One picture of each notebook that draws, the largest, which leads there."
    lines = ["# Gallery\n> One picture of each notebook, as it was computed when the notebook was last run; a click leads there", '<div class="gallery">']
    for page, path in notebooks().items():
        if path.stem == "solutions":
            continue  # nothing is given away
        nb = read(path)
        images = [out["data"]["image/png"] for cell in nb["cells"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        if images:
            name = f"gallery_{page.replace('/', '_')}.png"
            write(SOURCE / "_extra" / "_images" / name, base64.b64decode("".join(max(images, key=len))))
            title = source(nb["cells"][0]).splitlines()[0].removeprefix("# ")
            lines.append(f'<a href="{page}.html"><img src="_images/{name}" alt="A picture of the notebook {title}" loading="lazy" class="dark-light">'
                         f"<span>{title}</span></a>")
    return "\n".join(lines[:1] + [""] + lines[1:] + ["</div>"]) + "\n"


def known_names(found: list[api.Module]) -> dict[str, dict[str, str]]:
    "Page -> what is defined or imported there: name -> module or chapter."
    known: dict[str, dict[str, str]] = {}
    for module in found:
        own = {symbol.name: module.name for symbol in module.symbols}
        known.setdefault(f"api/{module.name}", {}).update(own)
        known.setdefault(f"api/{module.name.split('.')[0]}", {}).update(own)
    for page, path in notebooks().items():
        names: dict[str, str] = {}
        for cell in read(path)["cells"]:
            if cell["cell_type"] == "code" and re.search(r"(?m)^(?:from|import) crlsr", source(cell)):
                for node in ast.walk(ast.parse(source(cell))):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crlsr."):
                        names |= {alias.asname or alias.name: node.module.removeprefix("crlsr.") for alias in node.names if not alias.asname}
        if path in exporting_notebooks():
            names |= known.get(f"api/{module_of(path)}", {})
        known[page] = names
    return known


# ---- all

def stage() -> None:
    "Writes all sources of the site, and takes away what has none any more."
    written.clear()
    known = homes()
    for page, path in (notebooks() | executed()).items():
        stage_notebook(page, path, known)
    for page, path in texts().items():
        text = path.read_text(encoding="utf-8").replace("{repository}", url("").split("/blob/")[0])
        for heading in re.findall(r"(?m)^<!-- index: (.+) -->$", text):
            text = text.replace(f"<!-- index: {heading} -->", section(NBS / "index.ipynb", heading))
        write(SOURCE / f"{page}.md", relinked(text, path, page, known))
    for folder, pages in chapters().items():
        if pages:
            write(SOURCE / folder / "index.md", chapter_page(folder, pages))
    for name, text in api.pages(ROOT / "crlsr").items():
        write(SOURCE / "api" / f"{name}.rst", text)
    write(SOURCE / "choices.md", choices())
    write(SOURCE / "gallery.md", gallery())
    for path in [path for path in SOURCE.rglob("*") if path.is_file() and path not in written]:
        path.unlink()


if __name__ == "__main__":
    stage()
    print(f"{len(written)} files in {SOURCE.relative_to(ROOT)}")
