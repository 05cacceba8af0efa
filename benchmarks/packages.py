"""Packages that a benchmark needs and the project does not: in a virtual environment on top of the project's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_DIRECTORY = ROOT / ".venv-benchmark"
_STAMP = "made-from.txt"


def begin_anew_with(constraints: Path, *packages: str) -> None:
    """Run this program with more packages than the project's environment has; return at once if it runs so already.

    The packages are in the ``site-packages`` of a virtual environment, in which a ``.pth`` file adds the project's. So
    they are where a user's packages are: found by the same Python, in the same way, by all processes. A directory in
    ``PYTHONPATH`` would come before the standard library, and its modules would look like the user's own. The
    environment is kept for the next time. It is made again if the constraints have changed.

    :param constraints: the file with the versions, also of what the packages need themselves.
    """
    if Path(sys.prefix) == _DIRECTORY:
        return
    project = sysconfig.get_path("purelib")
    stamp = f"{sys.version}\n{project}\n{' '.join(packages)}\n{constraints.read_text()}"
    made = _DIRECTORY / _STAMP
    if not made.exists() or made.read_text() != stamp:
        _make(project, constraints, packages, stamp)
    python = _DIRECTORY / "bin" / "python"
    os.execv(python, [str(python), *sys.argv])


def _make(project: str, constraints: Path, packages: tuple[str, ...], stamp: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    new = Path(tempfile.mkdtemp(dir=ROOT, prefix=".venv-benchmark-"))
    try:
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, new], check=True)
        python = new / "bin" / "python"
        command: list[str | Path] = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        subprocess.run([*command, "--constraint", constraints, *packages], check=True)
        (site,) = new.glob("lib/python*/site-packages")
        (site / "project.pth").write_text(f"import site; site.addsitedir({project!r})\n")
        (new / _STAMP).write_text(stamp)
        shutil.rmtree(_DIRECTORY, ignore_errors=True)
        new.rename(_DIRECTORY)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(new)
