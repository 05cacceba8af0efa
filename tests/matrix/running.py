"""Runs a row, and counts what its tests say."""

from __future__ import annotations

import datetime as dt
import os
import shlex
import shutil
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.rows import HERE, Row
from tests.matrix.systems import CACHE, UnavailableError, system, work_directory

_SCRIPT = """\
unavailable() {{ echo "$1" >"$WORK/unavailable"; exit 77; }}
export A="$WORK/a" B="$WORK/b"
mkdir "$A" "$B" "$WORK/result"
chmod 1777 "$WORK/result"
{setup}
{{ {version}
}} >"$WORK/version"
export PYTHONPYCACHEPREFIX="$WORK/pycache"
code=0
{before} "$PYTHON" -u -m pytest --junitxml="$WORK/result/junit.xml" {words} || code=$?
exit $code
"""


@dataclass(frozen=True)
class Outcome:
    """What a run of a row has shown.

    :param unavailable: why it could not be set up on this machine.
    """

    date: str
    version: str
    passed: int
    failed: int
    skipped: int
    seconds: int
    unavailable: str = ""

    @property
    def is_good(self) -> bool:
        """Whether its tests ran, and all passed."""
        return self.passed > 0 and self.failed == 0


@dataclass(frozen=True)
class Run:
    """An outcome with what was printed."""

    outcome: Outcome
    output: str
    complete: bool  # otherwise it could not be set up, or pytest itself was ended


def missing(row: Row) -> list[str]:
    """The programs that the quick form of a row needs on this machine, and that are not there."""
    return [name for name in ("unshare", "ip", *row.programs) if shutil.which(name) is None]


def run(row: Row, *, quick: bool = False, workers: int = 2) -> Run:
    """Set up the system of a row, and run its tests there.

    :param quick: the quick form, on this machine.
    :param workers: processes of pytest.
    """
    place = system(HERE if quick else row.system)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    try:
        place.prepare(row.packages)
    except UnavailableError as error:
        return Run(Outcome(today, "", 0, 0, 0, 0, unavailable=str(error)), "", complete=True)
    chosen = row.quick if quick else row.tests
    with work_directory() as work:
        words = ["-p", "no:cacheprovider", "--quiet", "-n", str(workers), *chosen]
        before = shlex.join(row.before)
        script = _SCRIPT.format(setup=row.setup, version=row.version, before=before, words=shlex.join(words))
        begun = time.monotonic()
        variables = {"PYTHON": place.python, "ROUNDS": os.environ.get("ROUNDS", "1"), **row.environment}
        log = CACHE / f"{row.name}.log" if not quick else work / "log"
        code = place.run(script, work, variables, log)
        passed, failed, skipped = _counts(work / "result/junit.xml")
        outcome = Outcome(
            date=today,
            version=_read(work / "version"),
            passed=passed,
            failed=failed,
            skipped=skipped,
            seconds=round(time.monotonic() - begun),
            unavailable=_read(work / "unavailable"),
        )
        return Run(outcome, log.read_text(errors="replace"), complete=code in (0, 1) or bool(outcome.unavailable))


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _counts(path: Path) -> tuple[int, int, int]:
    """How many tests have passed, failed and been skipped."""
    if not path.exists():
        return 0, 0, 0
    suite = ET.parse(path).getroot().find("testsuite")
    assert suite is not None
    tests, errors, failures, skipped = (int(suite.get(name, 0)) for name in ("tests", "errors", "failures", "skipped"))
    failed = errors + failures
    return tests - failed - skipped, failed, skipped
