"""A model file of some kB whose config asks for huge networks: they are built before the weights are compared (memory, or endless)."""
import json, resource, signal, sys, tempfile
from pathlib import Path
import torch
from safetensors.torch import save_file
from crlsr.model import ModelConfig, load_model_file
from crlsr.model.files import FORM
W = Path(tempfile.mkdtemp()); bad = 0
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # so that the case itself harms nobody
signal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(TimeoutError("30 s")))
for change in ({"num_feat": 20000}, {"num_block": 100000}, {"queue_size": 10**10, "bc_negatives": "queue", "ema_keys": 0.9}, {"num_embed": 10**9}):
    save_file({"restorer.x": torch.zeros(1)}, W / "m.safetensors", {"crlsr": json.dumps({"format": FORM, "config": {**ModelConfig().flat(), **change}})})
    signal.alarm(30)
    try:
        load_model_file(W / "m.safetensors"); verdict = "loaded"
    except ValueError as error:
        verdict = "refused"
    except BaseException as error:
        verdict = f"{type(error).__name__}: {str(error)[:120]}"; bad += 1
    signal.alarm(0); print(change, verdict)
sys.exit(bad > 0)
