"""A run folder deleted or renamed while training: it is made anew without lock and config.json, half the log is missing, the run reports success; a second process may start in it at once."""
import shutil, sys, json
import crlsr.training.loop as T
from _run import W, photographs, train
data = photographs(); run = W / "run"; honest = T._one_step; free = []
def step(state_run, batches):
    if state_run.state.step == 3 and run.exists(): shutil.rmtree(run)
    if state_run.state.step == 5: free.append(not (run / ".lock").exists())
    return honest(state_run, batches)
T._one_step = step
try:
    result = train(run, data)
except (OSError, ValueError) as error:
    print("refused:", error); sys.exit(0)
steps = [json.loads(line)["step"] for line in open(run / "log.jsonl")]
print("finished:", result.finished, "log has steps", steps, "config.json:", (run / "config.json").exists(), "folder free for a second process meanwhile:", free)
sys.exit(len(steps) != 6)
