"""A file name in another encoding: degrade writes the images and then dies without params.json; printing a path can end a batch after its first image."""
from _common import *
import subprocess
os.mkdir("d"); b = io.BytesIO(); picture().save(b, "PNG")
for n in (b"d/a\xe9.png", b"d/b.png"): open(n, "wb").write(b.getvalue())
os.mkdir("u"); open("u/\u0424.png", "wb").write(b.getvalue()); open("u/z.png", "wb").write(b.getvalue())
exe = [sys.executable, "-c", "import sys; from crlsr.app.cli import main; sys.exit(main())"]
def run(enc, *a): return subprocess.run([*exe, *a], env={**os.environ, "PYTHONIOENCODING": enc}, capture_output=True)
faults = []
p = run("utf-8:surrogateescape", "degrade", "d", "-o", "o", "--preset", "iso", "--scale", "2")
if not os.path.exists("o/params.json"): faults.append(f"degrade wrote {len(os.listdir('o'))} images, no params.json: {p.stderr.decode(errors='replace').strip()}")
for enc, src in (("utf-8:strict", "d"), ("cp1252", "u")):
    p = run(enc, "upscale", src, "-o", "o-" + enc[:4] + src, "--model", "bicubic")
    if p.returncode: faults.append(f"upscale with stdout {enc}: {len(os.listdir('o-' + enc[:4] + src))} of 2 images, then {p.stderr.decode(errors='replace').strip()}")
end(faults)
