"""Prints the requirements of an installation with the notebook extra, as settings.ini states them."""
import configparser
from pathlib import Path

settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

if __name__ == "__main__":
    print(*cfg["requirements"].split(), *cfg["notebooks_requirements"].split())
