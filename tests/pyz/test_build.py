"""What air-executor.pyz holds, and how it is unpacked."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

from pyz import build
from tests.pyz.conftest import OLD, SUPPORTED, Pyz
from tests.support.processes import kill_all_with_environment
from tests.support.waiting import wait_until

NEWEST = list(SUPPORTED)[-1]


@pytest.fixture
def fresh(archive: Path, tmp_path: Path) -> Pyz:
    """The archive of a user who has never used it."""
    return Pyz(archive, SUPPORTED[NEWEST], tmp_path / "base", tmp_path / "cache")


def content(archive: Path) -> list[str]:
    with ZipFile(archive) as outer, ZipFile(io.BytesIO(outer.read("content.zip"))) as inner:
        return inner.namelist()


def test_compiled_modules_are_there_for_each_python_and_machine(archive: Path) -> None:
    found = {name.partition(".")[2] for name in content(archive) if name.startswith("pydantic_core/_pydantic_core.")}
    machines = ["x86_64-linux-gnu", "aarch64-linux-gnu", "x86_64-linux-musl", "aarch64-linux-musl"]
    assert {f"cpython-{python}-{machine}.so" for python in (311, 312, 313, 314) for machine in machines} == found


def test_it_has_no_airflow_and_the_licences_of_all_that_it_has(archive: Path) -> None:
    names = content(archive)
    packages = {name.partition("-")[0] for name in names if ".dist-info/" in name}
    assert "airflow_provider_air_executor" in packages
    assert not {name for name in packages if name.startswith(("apache", "sqlalchemy", "cryptography"))}
    licensed = {name.partition("-")[0] for name in names if ".dist-info/" in name and "LICENSE" in name.upper()}
    assert packages - licensed == set()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    files = {"airflow_provider_air_executor-1.2.dist-info/METADATA": b"", "a.py": b"1"}
    build.write(tmp_path / "one.pyz", files)
    build.write(tmp_path / "two.pyz", dict(reversed(files.items())))
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
    assert os.access(tmp_path / "one.pyz", os.X_OK)


def test_installations_that_differ_are_not_mixed(tmp_path: Path) -> None:
    for name, text in (("one", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text(text)
    with pytest.raises(ValueError, match=r"module\.py differs"):
        build.merged([tmp_path / "one", tmp_path / "two"])


def test_ten_that_start_at_once_unpack_it_once(fresh: Pyz, tmp_path: Path) -> None:
    started = [fresh.start("--version") for _ in range(10)]
    assert [process.wait() for process in started] == [0] * 10
    (tree,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert stat.S_IMODE(tree.stat().st_mode) == stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert list(tree.glob("pydantic_core/*.so")) == list(tree.glob(f"pydantic_core/*{suffix()}"))
    assert list(tree.glob("airflow_provider_air_executor/__pycache__/*.pyc"))


def suffix() -> str:
    code = "import importlib.machinery; print(importlib.machinery.EXTENSION_SUFFIXES[0])"
    return subprocess.run([SUPPORTED[NEWEST], "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_one_that_is_killed_while_it_unpacks_leaves_nothing(fresh: Pyz, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killed = fresh.start("--version")
    wait_until(lambda: list(cache.glob(".new-*/*")) or killed.poll() is not None, what="it unpacks", interval=0.001)
    killed.kill()
    killed.wait()
    assert fresh.run("--version").startswith("air-executor, version")
    assert not list(cache.glob(".new-*"))
    kill_all_with_environment(f"AIR_EXECUTOR_BASE_PATH={fresh.base_path}")


def test_another_version_that_was_unpacked_is_left_alone(fresh: Pyz, tmp_path: Path) -> None:
    other = tmp_path / "cache" / "0.0.1-0123456789abcdef.cpython-311-x86_64-linux-gnu"
    other.mkdir(parents=True)
    (other / "airflow_provider_air_executor.py").write_text("raise SystemExit('an old one')")
    assert fresh.run("--version").startswith("air-executor, version")
    assert other.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_not_used(fresh: Pyz, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o777)
    os.chown(tmp_path / "cache", 65534, 65534)
    assert "belongs to another user; AIR_EXECUTOR_CACHE names another" in fresh.fail("--version")


def test_where_it_cannot_be_unpacked_it_says_what_to_do(fresh: Pyz, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    said = fresh.fail("--version")
    assert "there is no directory to unpack it in" in said
    assert "AIR_EXECUTOR_CACHE names another directory" in said


@pytest.mark.skipif(not OLD, reason="there is no Python here that is too old")
@pytest.mark.parametrize("version", OLD)
def test_an_old_python_looks_for_a_newer_one(archive: Path, tmp_path: Path, cache: Path, version: str) -> None:
    old = Pyz(archive, OLD[version], tmp_path / "base", cache)
    old.environment["PATH"] = str(tmp_path)
    assert f"Python 3.11 or newer is needed; {old.python} is {version}." in old.fail("--version")
    (tmp_path / f"python{NEWEST}").symlink_to(SUPPORTED[NEWEST])
    assert old.run("--version").startswith("air-executor, version")


def test_a_machine_that_it_has_nothing_for_is_named(archive: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.machinery as machinery, runpy, sys\n"
        "machinery.EXTENSION_SUFFIXES[0] = '.cpython-399-riscv64-linux-gnu.so'\n"
        "sys.argv = ['air-executor', '--version']; runpy.run_path(sys.orig_argv[-1], run_name='__main__')"
    )
    environment = {"AIR_EXECUTOR_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.run(
        [SUPPORTED[NEWEST], "-c", code, str(archive)], env=environment, check=False, capture_output=True, text=True
    )
    assert "needs modules for cpython-399-riscv64-linux-gnu; there are those for cpython-311-aarch64" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
