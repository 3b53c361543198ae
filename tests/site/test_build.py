"""The finished site: built without a warning, no link into the void, every picture with its text, and nothing asked of another host."""
import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.notebooks import NBS, ROOT

PAGES = ["index", "03_images/02_scaling", "04_degradation/03_blur", "04_degradation/solutions", "07_contrast/04_bidirectional", "explore/degradations", "reproduce/train",
         "api/contrast.infonce", "results/recipe", "gallery", "choices", "notation", "search.html?q=info_nce"]
MIDWAY = ("script", "img", "iframe", "source", "video")  # what a browser fetches by `src`


class Page(HTMLParser):
    "What a page offers to links, where its own lead, and what a browser fetches for it."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.fetched, self.images = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[key] for key in ("id", "name") if a.get(key)}
        self.links += [a["href"]] if tag == "a" and a.get("href") else []
        self.fetched += [a["src"]] if tag in MIDWAY and a.get("src") else []
        self.fetched += [a["href"]] if tag == "link" and a.get("rel") in ("stylesheet", "icon", "preload") else []
        self.images += [(a.get("src"), a.get("alt"))] if tag == "img" else []


def read_site(folder: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html") if "_static" not in path.parts}


def broken(pages: dict[Path, Page]) -> list[str]:
    "Links and files that are not there."
    bad = []
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not goal.exists() or parts.fragment and goal in pages and unquote(parts.fragment) not in pages[goal].ids:
                bad.append(f"{path.name}: {link}")
    return bad


def foreign(pages: dict[Path, Page]) -> list[str]:
    return [f"{path.name}: {source}" for path, page in pages.items() for source in page.fetched if urlsplit(source).netloc]


def without_text(pages: dict[Path, Page]) -> list[str]:
    return [f"{path.name}: {source}" for path, page in pages.items() for source, alt in page.images if not (alt or "").strip() or alt.endswith(".png")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built as `make docs` builds it."
    pytest.importorskip("myst_nb", reason="Sphinx is not installed: make test-browser installs it")
    folder, make = tmp_path_factory.mktemp("site"), (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"-m sphinx (.*) nbs/_site/_build/source \$\(SITE\)", make)[1].split()
    assert "-W" in options
    for command in ([str(NBS / "_site" / "stage.py")], ["-m", "sphinx", *options, "nbs/_site/_build/source", str(folder)]):
        run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_pages_hold_what_they_point_to(site):
    pages = read_site(site)
    assert len(pages) > 130
    assert broken(pages) == [] and foreign(pages) == [] and without_text(pages) == []


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_asks_another_host(site, theme):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    asked, errors, formulas = look(playwright, chromium, site, theme)
    assert asked == [] and errors == []
    assert formulas["notation"] > 10 and formulas["03_images/02_scaling"] > 10


def look(playwright, chromium, site, theme):
    "Opens pages; what they asked of other hosts, what went wrong, and how many formulas each shows."
    asked, errors, formulas = [], [], {}
    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as play:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme=theme)
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url) if not request.url.startswith((home, "data:", "blob:")) else None)
        page.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in PAGES:
            page.goto(home + (name if "?" in name else name + ".html"), wait_until="load")
            page.wait_for_function("!window.MathJax?.startup?.promise || window.MathJax.startup.promise.then(() => true)")
            formulas[name] = page.locator("mjx-container").count()
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name}: the page scrolls sideways"
            for answer in page.locator("details.solution").all():  # closed until its first line is clicked
                cells = answer.locator(".cell")
                assert cells.count() and not cells.first.is_visible()
                answer.locator("summary").first.click()
                assert cells.first.is_visible()
            errors += [f"{name}: {text}" for text in page.locator("mjx-merror").all_inner_texts()]
        browser.close()
        server.shutdown()
    return asked, errors, formulas


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_checks_can_fail(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<p id="here"></p><a href="#here"></a><a href="#gone"></a><a href="gone.html"></a><a href="https://example.org/x"></a>'
                    '<img src="https://example.org/y.png" alt="y"><img src="page.html" alt="a.png"><img src="page.html">')
    pages = read_site(tmp_path)
    assert broken(pages) == ["page.html: #gone", "page.html: gone.html"]
    assert foreign(pages) == ["page.html: https://example.org/y.png"]
    assert without_text(pages) == ["page.html: page.html", "page.html: page.html"]
