"""Packaging: every name and version is read from settings.ini; shared files are copied into the wheel."""
import configparser
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

URL = f"https://github.com/{cfg['user']}/{cfg['repo']}"
STATUS = {"3": "Alpha", "4": "Beta", "5": "Production/Stable"}  # of nbdev's number in settings.ini

# What an installed package needs from outside crlsr/: kept once in the repository, found by `core.share_path`.
SHARED = {"nbs/reproduce": ("*.ipynb", "Snakefile", "README.md"), "nbs/reproduce/studies": ("*.toml",), "data": ("registry.json",)}


def readme() -> str:
    "README.md with links that lead somewhere from outside the repository too."
    def absolute(match: re.Match) -> str:
        return f"{match[0]}{URL}/{'raw' if match[1] else 'blob'}/{cfg['branch']}/"

    return re.sub(r"(!?)\[[^\]]*\]\((?!\w+:|#)", absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


class BuildWithShare(build_py):
    """Copies the papermill notebooks, the studies and the dataset registry to `crlsr/_share/` of the build."""

    def run(self):
        super().run()
        if self.editable_mode:  # an editable install finds them in the checkout
            return
        for folder, patterns in SHARED.items():
            target = Path(self.build_lib) / "crlsr" / "_share" / folder
            target.mkdir(parents=True, exist_ok=True)
            for source in sorted(path for pattern in patterns for path in (ROOT / folder).glob(pattern)):
                shutil.copy2(source, target / source.name)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=URL,
    project_urls={
        "Source": URL,
        "Issues": f"{URL}/issues",
        "Notebooks": f"{URL}/blob/{cfg['branch']}/nbs/index.ipynb",
        "Changelog": f"{URL}/blob/{cfg['branch']}/CHANGELOG.md",
    },
    keywords=cfg["keywords"],
    classifiers=[
        f"Development Status :: {cfg['status']} - {STATUS[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    python_requires=f">={cfg['min_python']}",
    package_dir={"": "."},  # an editable install is then a plain path entry: see a checkout named crlsr from its parent
    packages=find_packages(include=["crlsr", "crlsr.*"]),
    package_data={"crlsr": ["py.typed", "models/*/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "notebooks": cfg["notebooks_requirements"].split(),
        "gradients": cfg["gradients_requirements"].split(),
        "lpips": cfg["lpips_requirements"].split(),
        "clean": cfg["clean_requirements"].split(),
        "docs": cfg["docs_requirements"].split(),
        "dev": " ".join(cfg[f"{extra}_requirements"] for extra in ("notebooks", "clean", "dev")).split(),
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    cmdclass={"build_py": BuildWithShare},
    zip_safe=False,
)
