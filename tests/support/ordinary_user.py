"""Tests that run once more as an ordinary user, in a pytest of their own: root does not meet what others may not do."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

USER = "nobody"
_CHECKOUT = Path(__file__).parents[2]
_NEEDED = sorted({Path(sys.base_prefix), Path(sys.prefix), _CHECKOUT})


def missing() -> list[str]:
    """What such a run needs and is not there."""
    if os.geteuid() != 0:
        return ["root, who can become somebody else"]
    found = [name for name in ("setpriv", "unshare") if shutil.which(name) is None]
    if not found and subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        found.append("the right to mount")
    return found


def run_tests(*chosen: str, **environment: str) -> None:
    """Run tests as :data:`USER`.

    :param chosen: as in the command line of pytest.
    :param environment: more environment variables.
    :raises AssertionError: with what pytest has printed, if they do not pass.
    """
    user = pwd.getpwnam(USER)
    # With the variables of coverage, this user would write into the checkout.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    with tempfile.TemporaryDirectory(prefix="air-executor-user-") as home:
        os.chown(home, user.pw_uid, user.pw_gid)
        own = {"HOME": home, "TMPDIR": home, "USER": USER, "LOGNAME": USER, "PYTHONDONTWRITEBYTECODE": "1"}
        becoming = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
        command = ["unshare", "--mount", "sh", "-ec", f'{opened(Path(home))}exec "$@"', "sh", *becoming, *pytest]
        done = subprocess.run(
            command,
            cwd=_CHECKOUT,
            env={**kept, **own, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, f"as {USER}:\n{done.stdout}{done.stderr}"


def opened(home: Path) -> str:
    """Lines of ``sh`` that make reachable what is needed: the interpreter or the checkout may be in root's own home.

    They are for a mount namespace. A directory that is open to its owner alone is covered by one that has but the
    needed ones. That is seen by these processes alone, and gone with them.

    :param home: an empty directory that everybody reaches.
    """
    within: dict[Path, list[Path]] = {}
    for place in _NEEDED:
        closed = next((each for each in (*reversed(place.parents), place) if not each.stat().st_mode & 0o001), None)
        if closed is not None:
            within.setdefault(closed, []).append(place)
    lines = []
    for closed, places in within.items():
        pairs = [(shlex.quote(str(place)), shlex.quote(f"{home}/{number}")) for number, place in enumerate(places)]
        lines += [f"mkdir {kept}; mount --rbind {place} {kept}" for place, kept in pairs]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}")
        lines += [f"mkdir -p {place}; mount --rbind {kept} {place}" for place, kept in pairs]
        lines += [f"umount -l {kept}; rmdir {kept}" for _, kept in pairs]
    return "".join(f"{line}\n" for line in lines)
