"""A fresh virtual environment outside the repository, for tests that install what was built.

Nothing is downloaded. It sees the packages of this environment through a ``.pth`` file, so that torch is there, and its
own come first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


class Environment:
    """A virtual environment of its own, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "elsewhere"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        names = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        self.site = Path(sysconfig.get_path("purelib", "venv", names))
        self.scripts = Path(sysconfig.get_path("scripts", "venv", names))
        here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(here)]  # follows editable installs too
        (self.site / "outer.pth").write_text("".join(lines), encoding="utf-8")

    def run(self, *command: str, **environment: str) -> str:
        """Run a command outside the repository; its standard output."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ALIGNKIT_", "COV", "PYTEST"))}
        settings = {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        done = subprocess.run(command, cwd=self.work, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, *arguments: str, **environment: str) -> str:
        return self.run(str(self.scripts / "python"), *arguments, **environment)

    def alignkit(self, *arguments: str, **environment: str) -> str:
        return self.python("-c", "from alignkit.cli import main; main()", *arguments, **environment)

    def install(self, *folders: Path) -> list[Path]:
        """Build a wheel from each folder, install them all, and return them."""
        build = (
            "import os, sys; from hatchling.build import build_wheel\n"
            "for folder in sys.argv[2:]:\n    os.chdir(folder); build_wheel(sys.argv[1])"
        )
        wheels = self.work / "wheels"
        wheels.mkdir()
        self.python("-c", build, str(wheels), *map(str, folders))
        built = sorted(wheels.glob("*.whl"))
        assert len(built) == len(folders)
        quiet = ("--no-index", "--no-deps", "--disable-pip-version-check", "--quiet", "--ignore-installed")
        self.python("-m", "pip", "install", *quiet, "--prefix", str(self.site.parents[2]), *map(str, built))
        return built
