"""What a large data set costs: the start on a long folder, and a patch from a photograph or from its piece."""
from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from crlsr.core import generator
from crlsr.data import ImagePool
from crlsr.images import list_images, read_image, write_image
from tests.bench import paired

FILES = 20_000


def folder_start() -> str:
    "20,000 files: names and sizes from the table of an earlier start ('ours'), against opening each file for its header ('plain')."
    with tempfile.TemporaryDirectory() as root:
        os.environ["CRLSR_CACHE"] = f"{root}/cache"
        folder = Path(root) / "photos"
        write_image(torch.zeros(3, 40, 50), folder / "00000.png")
        data = (folder / "00000.png").read_bytes()
        for i in range(1, FILES):
            (folder / f"{i:05}.png").write_bytes(data)
        time.sleep(2)  # what is younger is not remembered

        def plain() -> None:
            for path in list_images(folder):
                with Image.open(path) as file:
                    assert min(file.size) == 40

        try:
            return paired(lambda: ImagePool(folder).shorter_sides(), plain, pairs=5)
        finally:
            del os.environ["CRLSR_CACHE"]


def piece_decode() -> str:
    "Decoding a piece of 480x480 ('ours') against the photograph of 2040x1356 that it was cut from ('plain')."
    with tempfile.TemporaryDirectory() as root:
        noise = torch.rand(3, 339, 510, generator=generator("bench", "photograph"))
        photograph = torch.nn.functional.interpolate(noise[None], scale_factor=4, mode="bicubic")[0].clamp(0, 1)
        write_image(photograph, f"{root}/whole.png")
        write_image(photograph[:, :480, :480], f"{root}/piece.png")
        return paired(lambda: read_image(f"{root}/piece.png"), lambda: read_image(f"{root}/whole.png"))


ROWS = {"folder-start": folder_start, "piece-decode": piece_decode}
