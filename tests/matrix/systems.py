"""The systems of the rows: this machine, with its Python or another, or a release of Debian, and how tests run there.

The files of a release are in the user's cache, outside the checkout. They are made once by ``debootstrap``; packages
are added when a row needs them. Python is that of the release, with what the tests need, without Airflow.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "air-executor/matrix"
CHECKOUT = Path(__file__).resolve().parents[2]
_ALWAYS = ("python3", "python3-venv", "procps", "iproute2", "util-linux-extra")
_TESTS = ("aiohttp", "asyncssh", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist")  # of those for developers
_WITH_AIRFLOW = ("fastapi", "httpx", "uvicorn")  # what it brings along
_UV = str(Path(sys.executable).parent / "uv")
_COMMAND = '#!/bin/sh\nexec "${0%/*}/python" -m airflow_provider_air_executor.manager.cli "$@"\n'
_VENVS = "opt"  # within the files of a release
_KEPT_SECONDS = 7 * 86_400  # that an environment of Python is kept after its last use
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--net")
# Where there are loopback addresses alone, the resolver offers IPv6 too, whether or not the kernel has it, and Slurm
# takes that. GlusterFS refuses loopback addresses.
_LOOPBACK = "ip link set lo up; ip address add 192.0.2.1/32 dev lo"
# All mounts are in the namespace, and gone with it.
_ENTER = f"""\
root=$1 work=$2 checkout=$3 cache=$4; shift 4
{_LOOPBACK}
mount --rbind "$root" "$root"  # what is no mount cannot be the root of another mount namespace
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir -m 1777 "$work/tmp"
mount --bind "$work/tmp" "$root/tmp"
for built in "$cache"/air-executor/kubernetes-*; do  # programs that this machine has built, which need no library
  [ -d "$built" ] || continue
  place=$work/cache/air-executor/$(basename "$built")
  mkdir -p "$place"
  mount --bind -o ro "$built" "$place"
done
mkdir -p "$root/work" "$root/checkout"
mount --rbind "$work" "$root/work"
mount --bind "$checkout" "$root/checkout"
chroot "$root" sh -ec 'cd /checkout; "$@"' sh "$@"
"""  # without exec: a process 1 without handlers does not get signals that it sends itself
_running: set[subprocess.Popen[bytes]] = set()
# What some packages do when they are installed needs it.
_WITH_PROC = 'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"'
_STAY = f'{_LOOPBACK}; mkdir -m 1777 "$WORK/tmp"; "$@"'
_SHORT = "/mnt"  # a directory of each machine that nothing lives in
_STAY_SHORT = f'{_LOOPBACK}; mkdir -m 1777 "$WORK/tmp"; mount --bind "$WORK/tmp" {_SHORT}; "$@"'


class UnavailableError(Exception):
    """A system cannot be had on this machine."""


class System:
    """This machine itself."""

    python = sys.executable

    def prepare(self, packages: Sequence[str]) -> None:
        """Make it ready; this machine has what it has."""

    def run(self, script: str, work: Path, environment: Mapping[str, str], log: Path) -> int:
        """Run lines of ``sh`` in namespaces of their own: the exit code.

        :param work: a directory that can be written to.
        :param environment: all that they get besides the usual variables.
        :param log: gets what they print.
        """
        return _run([*_UNSHARE, "--mount-proc", "sh", "-ec", _STAY, "sh", "sh", "-ec", script], work, environment, log)


class Debian(System):
    """The files of a release of Debian."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.root = CACHE / release
        self._venv = f"/{_VENVS}/{_environment_name('/checkout')}"
        self.python = f"{self._venv}/bin/python"

    def prepare(self, packages: Sequence[str]) -> None:
        """Make it ready: install what is missing, once."""
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{self.release}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.root.exists():
                self._bootstrap()
            self._install([*_ALWAYS, *packages])
            self._install_python()

    def run(self, script: str, work: Path, environment: Mapping[str, str], log: Path) -> int:
        places = [str(place) for place in (self.root, work, CHECKOUT, CACHE.parents[1])]
        words = ["sh", "-ec", _ENTER, "sh", *places, "sh", "-ec", script]
        # Names are short: a socket's has at most 107 bytes.
        own = {"WORK": "/work", "TMPDIR": "/tmp", "HOME": "/root", "XDG_CACHE_HOME": "/work/cache"}
        return _run([*_UNSHARE, *words], work, {**own, **environment}, log)

    def _bootstrap(self) -> None:
        _say(f"fetching Debian {self.release}")
        new = self.root.with_name(f"{self.release}.new")
        shutil.rmtree(new, ignore_errors=True)
        _check(["debootstrap", "--variant=minbase", self.release, str(new), _mirror()])
        # Nothing that is installed there starts a service.
        policy = new / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        new.rename(self.root)

    def _install(self, packages: Sequence[str]) -> None:
        status = (self.root / "var/lib/dpkg/status").read_text()
        there = re.findall(r"^Package: (\S+)\n(?:\S.*\n)??Status: install ok installed$", status, re.MULTILINE)
        missing = sorted(set(packages) - set(there))
        if not missing:
            return
        _say(f"installing in Debian {self.release}: {' '.join(missing)}")
        for name in ("resolv.conf", "hosts"):
            shutil.copyfile(f"/etc/{name}", self.root / "etc" / name)
        apt = "apt-get -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false"  # a mirror may be old
        install = f"{apt} install --yes --quiet --no-install-recommends {' '.join(missing)}"
        line = f"{apt} update --quiet && {install} && apt-get clean"
        own = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _WITH_PROC, str(self.root)]
        _check([*own, "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-ec", line])

    def _install_python(self) -> None:
        ask = 'import sys; print("%d.%d" % sys.version_info[:2])'
        version = _check(["chroot", str(self.root), "python3", "-c", ask]).strip()
        make = ["chroot", str(self.root), "python3", "-m", "venv", "--without-pip", "--clear", self._venv]
        _make_environment(self.root / self._venv[1:], version, make, "/checkout")


class Python(System):
    """This machine's own files, with another Python: one that is there already, or that uv fetches."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._place = CACHE / f"python-{version}" / _environment_name(str(CHECKOUT))
        self.python = str(self._place / "bin/python")

    def prepare(self, packages: Sequence[str]) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        make = [_UV, "venv", "--quiet", "--clear", "--python", self._interpreter(), str(self._place)]
        try:
            _make_environment(self._place, self._version, make, str(CHECKOUT))
        except RuntimeError as error:
            raise UnavailableError(f"there is no Python {self._version}, and it cannot be fetched") from error

    def _interpreter(self) -> str:
        """One of pyenv, which shows its others to nobody, or what uv finds or fetches for the version."""
        home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
        found = sorted(home.glob(f"versions/{self._version}.*/bin/python{self._version}"))
        return str(found[-1]) if found else self._version

    def run(self, script: str, work: Path, environment: Mapping[str, str], log: Path) -> int:
        """The tests make their files at a short path that everybody reaches; that of :data:`CACHE` may be neither."""
        words = [*_UNSHARE, "--mount-proc", "sh", "-ec", _STAY_SHORT, "sh", "sh", "-ec", script]
        return _run(words, work, {"TMPDIR": _SHORT, **environment}, log)


def system(name: str) -> System:
    """The system of this name."""
    if name == "here":
        return System()
    return Python(name.removeprefix("python-")) if name.startswith("python-") else Debian(name)


def _make_environment(place: Path, version: str, make: Sequence[str], checkout: str) -> None:
    """Make a virtual environment, once. Its packages are fetched by this machine, which knows an index.

    :param version: of its Python.
    :param make: words of the command that makes it.
    :param checkout: where its Python finds the checkout.
    """
    packages = place / f"lib/python{version}/site-packages"
    ready = place / "ready"
    if ready.exists() and ready.read_text() == version:
        ready.touch()
        return
    for other in place.parent.glob("air-executor*/ready"):
        if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(other.parent)
    _say(f"installing packages of Python {version} in {place}")
    _check(make)
    install = [_UV, "pip", "install", "--quiet", "--python", sys.executable]
    into = ["--target", str(packages), "--python-version", version]
    _check([*install, *into, "--only-binary", ":all:", "--constraint", str(_constraints()), *_needed()])
    _check([*install, *into, "--no-deps", "--editable", str(CHECKOUT)])
    shutil.copy(CHECKOUT / "tests/support/in_tests.pth", packages)
    (packages / "checkout.pth").write_text(f"{checkout}\n")
    command = place / "bin/air-executor"  # where uv puts it, it is in no PATH
    command.write_text(_COMMAND)
    command.chmod(0o755)
    ready.write_text(version)


def _environment_name(checkout: str) -> str:
    """The directory of an environment: that of other packages, or another checkout, may be in use at the same time."""
    parts = (checkout, _digest(CHECKOUT / "pyproject.toml", _constraints()), str(_needed()), _COMMAND)
    return f"air-executor-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def _constraints() -> Path:
    return max(CHECKOUT.glob("constraints/airflow-*.txt"))


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """An empty directory outside the checkout, which everybody reaches, and which is removed."""
    place = CACHE / "work"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="row-", dir=place) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _run(words: Sequence[str], work: Path, environment: Mapping[str, str], log: Path) -> int:
    usual = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(Path.home()),
        "XDG_CACHE_HOME": str(CACHE.parents[1]),
        "LANG": "C.UTF-8",
        "WORK": str(work),
        "TMPDIR": f"{work}/tmp",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            cwd=CHECKOUT,
            env={**usual, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    with process:
        _running.add(process)
        try:
            return process.wait()
        finally:
            process.kill()
            _running.discard(process)


def end_all() -> None:
    """End all that runs in other threads, with the processes in its namespace."""
    for process in list(_running):
        process.kill()


def _check(words: Sequence[str]) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _mirror() -> str:
    """Where this machine gets its packages of Debian from."""
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        text = path.read_text() if path.is_file() else ""
        for found in re.findall(r"^(?:URIs:|deb(?: \[.*\])?) *(\S+/debian)/?(?:\s|$)", text, re.MULTILINE):
            return str(found)
    raise UnavailableError("the sources of apt name no mirror of Debian")


def _needed() -> list[str]:
    """What the package and its tests need, without Airflow."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    found = [line for line in project["dependencies"] if not line.startswith("apache-airflow")]
    found += _WITH_AIRFLOW
    return found + [line for line in project["optional-dependencies"]["dev"] if re.split("[>=<]", line)[0] in _TESTS]


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
