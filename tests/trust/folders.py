"""What the tests of trust share: photographs, and what a command made."""
from pathlib import Path

from crlsr.data import embedded_images
from crlsr.images import write_image
from tests.studies.conftest import write_notebook

# the settings of the smallest training
TINY = {"steps": 40, "batch_size": 1, "patch_size": 12, "num_feat": 4, "num_block": 3, "warmup_steps": 1, "log_every": 5, "checkpoint_every": 5, "threads": 1, "weight_bc": 0.0, "weight_srnce": 0.0,
        "weight_rec": 0.0}


def photographs(folder: Path, side: int, count: int = 3) -> Path:
    "Crops of embedded photographs, `side` pixels wide."
    images = [*embedded_images("all").items()][:count]
    for number, (name, image) in enumerate(images):
        write_image(image[:, 20 : 20 + side, 30 + number : 30 + number + side], folder / f"{name}.png")
    return folder


SHORT = ["""profile: str = "smoke"  # x
name: str = ""  # x
seed: int = 0  # x
run_dir: str = "."  # x
data: str = ""  # x
val_data: None = None  # x
test_data: list[str] = []  # x
test_presets: list[str] = []  # x
pictures: int = 1  # x
steps: int = 1  # x
batch_size: int = 1  # x
patch_size: int = 1  # x
num_feat: int = 1  # x
num_block: int = 1  # x
warmup_steps: int = 1  # x
log_every: int = 1  # x
checkpoint_every: int = 1  # x
threads: int = 1  # x
weight_bc: float = 0.0  # x
weight_srnce: float = 0.0  # x
weight_rec: float = 0.0  # x""", """from pathlib import Path
from crlsr.core import write_json
from crlsr.studies.execution import check_parameters, notebook_parameters
from crlsr.training import fit
result = fit(*check_parameters(notebook_parameters(globals())), run_dir, progress=False)
assert result.finished
write_json(Path(run_dir) / "results.json", {"metrics": result.log[-1]["total"], "minutes": result.minutes})"""]


def study_folder(folder: Path, short: bool) -> None:
    "What `reproduce tiny` needs: two photographs and, for the short form, notebooks that train and no more."
    photos = embedded_images("all")
    write_image(photos["astronaut"][:, 40:200, 140:300], folder / "train" / "face.png")
    write_image(photos["chelsea"][:, 40:120, 120:220], folder / "test" / "cat.png")
    if short:
        write_notebook(folder / "train.ipynb", *SHORT)
        write_notebook(folder / "report.ipynb", 'runs: str = "."  # x', "print(runs)")


def made(folder: Path) -> dict[str, bytes]:
    "What was made in a folder, without locks and records."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.name != "manifest.jsonl"}


def debris(folder: Path) -> list[str]:
    "What a finished command must not leave: unfinished files, and folders in which they gathered."
    return [str(path) for path in folder.rglob("*") if path.name.startswith(".crlsr-") or ".partial" in path.name]
