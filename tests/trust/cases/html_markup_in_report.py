"""Names from results.json (run names, photographs' file names, devices) reach report.html as live markup: the page, said to hold no script, runs one."""
import sys, tempfile, re
from pathlib import Path
import nbformat as nf
from crlsr.studies.execution import export_page
folder = Path(tempfile.mkdtemp())
evil = "x<img src=x onerror=alert(1)><script src=https://evil.example/a.js></script>"
key = "photo`<img src=x onerror=alert(2)>"          # a legal file name
out = lambda text: nf.v4.new_output("display_data", {"text/markdown": text})
cell = nf.v4.new_code_cell("", outputs=[out(f"| model | PSNR |\n| --- | ---: |\n| {evil} | 1.0 |"), out(f"`{key}`, degraded by `iso`")])  # as report.ipynb writes them
nf.write(nf.v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python"}}), folder / "r.ipynb")
export_page(folder / "r.ipynb", folder / "r.html")
page = (folder / "r.html").read_text()
live = re.findall(r"<img [^>]*onerror[^>]*>|<script[^>]*>", page)
print("live markup:", live)
sys.exit(1 if live else 0)
