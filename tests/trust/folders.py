"""What the tests of trust share: photographs, and what a command made."""
from pathlib import Path

from crlsr.data import embedded_images
from crlsr.images import write_image


def photographs(folder: Path, side: int, count: int = 3) -> Path:
    "Crops of embedded photographs, `side` pixels wide."
    images = [*embedded_images("all").items()][:count]
    for number, (name, image) in enumerate(images):
        write_image(image[:, 20 : 20 + side, 30 + number : 30 + number + side], folder / f"{name}.png")
    return folder


def made(folder: Path) -> dict[str, bytes]:
    "What was made in a folder, without locks and records."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.name != "manifest.jsonl"}


def debris(folder: Path) -> list[str]:
    "What a finished command must not leave: unfinished files, and folders in which they gathered."
    return [str(path) for path in folder.rglob("*") if path.name.startswith(".crlsr-") or ".partial" in path.name]
