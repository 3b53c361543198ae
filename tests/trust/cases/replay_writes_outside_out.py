"""degrade --replay takes record names as paths: '../..' and absolute names write outside -o."""
import json, subprocess, sys, tempfile
from pathlib import Path
import numpy as np
from PIL import Image
W = Path(tempfile.mkdtemp()); hr = W / "hr"; hr.mkdir()
Image.fromarray((np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8)).save(hr / "a.png")
crlsr = str(Path(sys.executable).parent / "crlsr")
subprocess.run([crlsr, "degrade", hr, "-o", W / "lr", "--preset", "iso"], check=True, capture_output=True)
record = json.loads((W / "lr/params.json").read_text()); bad = []
for name, where in (("../../escape", W / "escape.png"), (str(W / "abs/evil"), W / "abs/evil.png")):
    record["images"][0]["name"] = name
    (W / "evil.json").write_text(json.dumps(record))
    done = subprocess.run([crlsr, "degrade", hr, "-o", W / f"out{len(bad)}" / "deep", "--replay", W / "evil.json"], capture_output=True, text=True)
    print(name, "rc", done.returncode, done.stderr.strip(), "written outside:", where.exists()); bad.append(where.exists())
sys.exit(any(bad))
