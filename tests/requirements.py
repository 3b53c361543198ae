"""Prints requirements as settings.ini states them: of an installation with the notebook extra, or of one extra alone, `python -m tests.requirements docs`."""
import configparser
import sys
from pathlib import Path

settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

if __name__ == "__main__":
    parts = [f"{extra}_requirements" for extra in sys.argv[1:]] or ["requirements", "notebooks_requirements"]
    print(*(requirement for part in parts for requirement in cfg[part].split()))
