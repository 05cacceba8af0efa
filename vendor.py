"""What `make vendor` runs: copies the libraries of the web pages out of their npm packages, byte for byte.

Pages may load nothing from other hosts, and there is no build: the files are part of the repository. npm checks the
packages against the hashes here. Only the specifier of an import is changed, since a page has no module resolution.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).resolve().parent / "airflow_provider_air_executor" / "plugin" / "static" / "vendor"


class Package(NamedTuple):
    """An npm package, and what is copied out of it."""

    name: str
    version: str
    integrity: str
    files: dict[str, str]  # path in the package -> name here


PACKAGES = (
    Package(
        "preact",
        "11.2.0",
        "sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "preact-hooks.js", "LICENSE": "preact.LICENSE"},
    ),
    Package(
        "htm",
        "3.1.1",
        "sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        {"dist/htm.module.js": "htm.js", "LICENSE": "htm.LICENSE"},
    ),
)
IMPORTS = {b'from"preact"': b'from"./preact.js"'}


def fetch(package: Package, folder: Path) -> None:
    """Download a package into ``folder``, and copy its files to :data:`TARGET`.

    :raises ValueError: if it is not the one that was looked at.
    """
    command = ["npm", "pack", "--json", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (told,) = json.loads(done.stdout)
    if told["integrity"] != package.integrity:
        raise ValueError(f"{package.name} {package.version} is {told['integrity']}, not {package.integrity}")
    with tarfile.open(folder / told["filename"]) as archive:
        for path, name in package.files.items():
            member = archive.extractfile(f"package/{path}")
            if member is None:
                raise ValueError(f"{package.name} {package.version} has no file {path}")
            content = member.read()
            for old, new in IMPORTS.items():
                content = content.replace(old, new)
            (TARGET / name).write_bytes(content)


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for each in PACKAGES:
            fetch(each, Path(temporary))
