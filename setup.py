"""Reads `settings.ini`, the one place for versions and requirements."""
import shutil
from configparser import ConfigParser
from glob import glob
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(here/"settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]


def needs(*names):
    "The requirements under each of `names` in `settings.ini`, in one list."
    return [r for name in names for r in cfg.get(f"{name}_requirements", "").split()]


class BuildWithPages(build_py):
    "Puts the Voilà pages, whose home is `nbs/`, into the built package."

    def run(self):
        super().run()
        if self.editable_mode: return
        pages = Path(self.build_lib)/cfg["lib_path"]/"pages"
        pages.mkdir(parents=True, exist_ok=True)
        for name in ("app.ipynb", "review.ipynb", "voila.json"): shutil.copy(here/"nbs"/name, pages)


class WithData(Distribution):
    "Installs `data_files` in an editable install too: setuptools asks for `has_data` there, and has none itself."

    def has_data(self): return self.has_data_files()


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    package_dir={"": "."},  # an editable install then adds this folder to the path, and no folder named bearclf elsewhere is taken for the package
    packages=find_packages(include=["bearclf", "bearclf.*"]),
    package_data={"bearclf": ["models/*/*", "share/**/*"]},
    include_package_data=True,
    data_files=[(f"share/jupyter/voila/templates/{part}", [f for f in glob(f"bearclf/share/jupyter/voila/templates/{part}/*") if Path(f).is_file()]) for part in ("bearclf", "bearclf/static")],
    install_requires=cfg["requirements"].split(),
    extras_require={
        "serve": needs("serve"),
        "course": needs("lesson", "serve", "course"),
        "latest": needs("lesson", "serve", "latest"),
        "dev": needs("lesson", "serve", "course", "dev", "nbdev2"),
        "dev-latest": needs("lesson", "serve", "latest", "dev", "nbdev3"),
    },
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"], "jupyter_client.kernel_provisioners": ["bearclf-warm=bearclf.visitors:WarmProvisioner"]},
    cmdclass={"build_py": BuildWithPages},
    distclass=WithData,
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Programming Language :: Python :: 3",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)],
    ],
)
