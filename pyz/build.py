"""Builds air-executor.pyz: the manager, its server and its command line in one file, which needs Python and no Airflow.

It holds the modules of all Pythons and machines of :data:`PYTHONS` and :data:`PLATFORMS`; docs/decisions/pyz.md tells
why it is a zipapp. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

HERE = Path(__file__).parent
PACKAGES = ("click", "fastapi", "inotify-simple", "pydantic", "pyyaml", "rich", "uvicorn")  # and their needs
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The oldest C libraries that a Python of these versions is built for.
PLATFORMS = (
    "x86_64-manylinux2014",
    "aarch64-manylinux2014",
    "x86_64-unknown-linux-musl",
    "aarch64-unknown-linux-musl",
)
_OWN = "airflow-provider-air-executor"
_SHEBANG = b"#!/usr/bin/env python3\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def main() -> None:
    """Build the archive that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--constraints", type=Path, required=True, help="The versions of the packages.")
    parser.add_argument("--output", type=Path, default=HERE.parent / "dist" / "air-executor.pyz")
    options = parser.parse_args()
    build(options.output, options.constraints)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")


def build(path: Path, constraints: Path) -> None:
    """Build an archive.

    :param constraints: the versions of the packages, as pip reads them.
    """
    with tempfile.TemporaryDirectory() as directory:
        content = packages(Path(directory), constraints)
    write(path, content)


def packages(directory: Path, constraints: Path) -> dict[str, bytes]:
    """The files of all packages, by their names.

    :param directory: an empty one, to install them in.
    :param constraints: their versions.
    """
    _uv("build", "--wheel", "--out-dir", str(directory / "wheel"), str(HERE.parent))
    (wheel,) = (directory / "wheel").glob("*.whl")
    _install(directory / "own", "--no-deps", str(wheel))
    targets = [(python, platform) for python in PYTHONS for platform in PLATFORMS]

    def install(target: tuple[str, str]) -> Path:
        python, platform = target
        path = directory / f"{python}-{platform}"
        only = ("--only-binary", ":all:", "--python-version", python, "--python-platform", platform)
        _install(path, *only, "--constraint", str(constraints), *PACKAGES)
        return path

    with ThreadPoolExecutor(2) as pool:
        trees = [directory / "own", *pool.map(install, targets)]
    return merged(trees)


def _install(path: Path, *arguments: str) -> None:
    _uv("pip", "install", "--target", str(path), *arguments)


def _uv(*arguments: str) -> None:
    """Run uv, which is beside this Python, or in ``PATH``. It compiles nothing, whatever the environment says."""
    uv = shutil.which("uv", path=os.path.dirname(sys.executable)) or "uv"
    environment = {name: value for name, value in os.environ.items() if name != "UV_COMPILE_BYTECODE"}
    subprocess.run([uv, "--quiet", *arguments], env=environment, check=True)


def merged(trees: list[Path]) -> dict[str, bytes]:
    """The files of several installations of the same packages, by their names.

    :raises ValueError: if two of them have a file that is not the same.
    """
    content: dict[str, bytes] = {}
    for tree in trees:
        for name, data in _files(tree):
            if content.setdefault(name, data) != data:
                raise ValueError(f"{name} differs between the machines that the archive is for")
    return content


def _files(tree: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_file() and not _is_left_out(name):
            yield name, path.read_bytes()


def _is_left_out(name: str) -> bool:
    """Whether a file is of no use: scripts, records of the installation, and the compiled parser of YAML.

    PyYAML has the same parser in Python, and settings are short; the compiled ones would be a third of the archive.
    """
    parts = name.split("/")
    if parts[0].endswith(".dist-info"):
        return parts[1] not in ("METADATA", "entry_points.txt", "licenses", "LICENSE", "LICENSE.txt")
    return parts[0] in ("bin", ".lock") or name.startswith("yaml/_yaml.")


def write(path: Path, content: Mapping[str, bytes]) -> None:
    """Write the archive, which appears whole."""
    files = {**content, "air_executor_start.py": (HERE / "start.py").read_bytes()}
    inner = io.BytesIO()
    with ZipFile(inner, "w", ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(_entry(name), files[name], ZIP_DEFLATED)
    key = f"{_version(content)}-{hashlib.sha256(inner.getvalue()).hexdigest()[:16]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("wb") as file:
        file.write(_SHEBANG)
        with ZipFile(file, "w", ZIP_STORED) as archive:
            archive.writestr(_entry("__main__.py"), (HERE / "main.py").read_bytes())
            archive.writestr(_entry("air_executor_unpack.py"), (HERE / "unpack.py").read_bytes())
            archive.writestr(_entry("key.txt"), key)
            archive.writestr(_entry("content.zip"), inner.getvalue())
    new.chmod(new.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    new.replace(path)


def _version(content: Mapping[str, bytes]) -> str:
    """The version of this package, as its metadata have it."""
    prefix = _OWN.replace("-", "_") + "-"
    return next(name for name in content if name.startswith(prefix)).removeprefix(prefix).partition(".dist-info")[0]


def _entry(name: str) -> ZipInfo:
    entry = ZipInfo(name, _EPOCH)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


if __name__ == "__main__":
    main()
