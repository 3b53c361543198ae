"""The site: `make docs`. What is written by hand stands in `pages/`, all else is made from the notebooks by `stage.py`, which has run before."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import stage  # noqa: E402

settings = stage.settings()

project, author, release = settings["title"], settings["author"], settings["version"]
copyright = settings["copyright"]  # noqa: A001
extensions = ["myst_nb", "sphinx.ext.mathjax", "links"]

# Notebooks are shown as they were committed; their outputs are tested elsewhere.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # no page loads a script from another host
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_heading_slug_func = "conf.anchor"
mathjax_path = "mathjax/tex-chtml.js"  # `links` copies it
mathjax3_config = {"chtml": {"mtextInheritFont": True}}

html_theme = "sphinx_book_theme"
html_title = f"{project} {release}"
html_static_path = ["static"]
html_extra_path = [str(stage.SOURCE / "_extra")]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "repository_url": f"https://github.com/{settings['user']}/{settings['repo']}",
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search stands in the sidebar
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
exclude_patterns = ["_extra"]
python_maximum_signature_line_length = 88
toc_object_entries = add_module_names = False


def anchor(heading: str) -> str:
    "How JupyterLab addresses a heading; the links in the notebooks are written so."
    return heading.strip().replace(" ", "-")
