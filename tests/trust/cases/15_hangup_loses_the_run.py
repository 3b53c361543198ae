"""SIGHUP (the terminal or the ssh connection closes) ends a training without a checkpoint; SIGTERM and Ctrl-C write one."""
from _common import *
import signal, subprocess, time
os.mkdir("d"); picture().save("d/a.png")
sets = [x for s in ("steps=100000", "patch_size=8", "batch_size=2", "num_feat=8", "num_block=2", "checkpoint_every=50000", "log_every=5") for x in ("--set", s)]
p = subprocess.Popen([sys.executable, "-c", "import sys; from crlsr.app.cli import main; sys.exit(main())", "train", "--profile", "smoke", "--run", "r", "--data", "d", *sets], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
for _ in range(240):
    time.sleep(0.5)
    if os.path.exists("r/log.jsonl") and os.path.getsize("r/log.jsonl"): break
p.send_signal(signal.SIGHUP); p.wait(60)
end([] if os.path.exists("r/checkpoint.pt") else [f"ended by {p.returncode}; left: {sorted(os.listdir('r'))}"])
