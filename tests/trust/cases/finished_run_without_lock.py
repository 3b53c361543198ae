"""Once model.safetensors has all its steps, the folder is never locked, though training may begin again (newest checkpoint damaged or removed): two processes write into one folder; and a finished model is replaced by an unfinished one meanwhile."""
import subprocess, sys
import crlsr.training.loop as T
from _run import W, photographs, train
data = photographs(); run = W / "run"; train(run, data); finished = (run / "model.safetensors").read_bytes(); bad = 0
for name in ("checkpoint.pt", "checkpoint-previous.pt"): (run / name).unlink()   # e.g. to save room
held, steps = [], []
honest = T._one_step
def step(state_run, batches):
    if len(held) == 2:  # from outside: does another process get in?
        other = subprocess.run([sys.executable, "-c", "import sys; from _run import train; train(sys.argv[1], sys.argv[2])", run, data], capture_output=True, text=True)
        held.append(other.returncode != 0 and "in use" in other.stderr)
    else: held.append(True)
    steps.append((run / "model.safetensors").read_bytes() == finished); return honest(state_run, batches)
T._one_step = step
train(run, data)
print("trained again:", len(held), "steps, lock held during them:", all(held) if held else None, "| finished model there all the time:", all(steps))
sys.exit(bool(held) and (not all(held) or not all(steps)))
