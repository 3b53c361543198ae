"""Prints the requirements of an extra as settings.ini states them: `python -m tests.requirements docs`."""
import configparser
import sys
from pathlib import Path

settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

if __name__ == "__main__":
    print(*(requirement for extra in sys.argv[1:] for requirement in cfg[f"{extra}_requirements"].split()))
