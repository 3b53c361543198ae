"""The picture of the README: one photograph under five degradations. `make picture` writes it anew.

It shows the task and argues for nothing: no network takes part.
"""
from pathlib import Path

from crlsr.core import atomic_path, generator
from crlsr.data import embedded_images
from crlsr.degradation import Degradation
from crlsr.viz import figure_png, show_images

TARGET = Path(__file__).parents[2] / "data/reference/readme.png"
SCALE, SIDE = 4, 192
TOP, LEFT = 45, 108  # the eyes of the cat
PRESETS = {
    "bicubic": "bicubic",
    "round blur": "iso:2.4",
    "rotated blur, noise": "aniso:4,1,45+noise:15",
    "blur, JPEG": "iso:1.2+jpeg:30",
    "blur and noise vary": "spatial:gradient",
}


def panels() -> dict:
    """Title → image (1, 3, H, W): hr first, then lr under each preset, one seed."""
    hr = embedded_images()["chelsea"][None, :, TOP:TOP + SIDE, LEFT:LEFT + SIDE]  # (1, 3, 192, 192)
    shown = {"hr": hr[0]}
    for title, preset in PRESETS.items():
        lr, _ = Degradation.parse(preset, scale=SCALE)(hr, generator(0))
        shown[title] = lr[0]
    return shown


def main() -> None:
    with atomic_path(TARGET) as path:
        path.write_bytes(figure_png(show_images(panels(), ncols=3)))


if __name__ == "__main__":
    main()
