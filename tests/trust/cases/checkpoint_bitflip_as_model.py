"""evaluate/upscale --model checkpoint.pt never looks at the archive's checksums (train does): one flipped bit changes figures without a word."""
import sys, tempfile
from pathlib import Path
import torch
from crlsr.inference import load_model
from crlsr.model import ModelConfig
from crlsr.training import TrainConfig
from crlsr.training.loop import save_state
from crlsr.training.step import new_state
W = Path(tempfile.mkdtemp()); config = TrainConfig(device="cpu", threads=1)
save_state(new_state(ModelConfig.from_dict({"num_feat": 4, "num_block": 2}), config), config, W)
path = W / "checkpoint.pt"; good = path.read_bytes(); reference = load_model(path).state_dict(); silent = 0
for i in range(40):
    data = bytearray(good); data[len(good) * (i + 1) // 42 | 3] ^= 0x40; path.write_bytes(data)
    try:
        state = load_model(path).state_dict()
    except ValueError:
        continue
    silent += any(not torch.equal(state[k], reference[k]) for k in reference)
print(f"silently other weights in {silent} of 40 flips"); sys.exit(silent > 0)
