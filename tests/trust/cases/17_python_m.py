"""python -m crlsr does not exist; python -m crlsr.app.cli does nothing and reports success."""
from _common import *
import subprocess
faults = []
for m in ("crlsr", "crlsr.app.cli"):
    p = subprocess.run([sys.executable, "-m", m, "--version"], capture_output=True, text=True)
    if "0." not in p.stdout: faults.append(f"python -m {m} --version: rc {p.returncode}, stdout {p.stdout!r}, stderr {p.stderr.strip()[-70:]!r}")
end(faults)
