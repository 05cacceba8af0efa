"""Runs the rows of the matrix, prints a table, and writes ``docs/where-it-runs.md``.

::

    python -m tests.matrix                     all rows
    python -m tests.matrix sh-bash 'slurm-*'   some
    python -m tests.matrix --at-once 4         as many at once, of which most wait most of the time
    python -m tests.matrix --list              names them
    python -m tests.matrix --page              only writes the page again

What the tests of a row print is in ``ROW.log`` in the cache, while they run too, and is shown if they fail.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.matrix import page
from tests.matrix.rows import ROWS, Row
from tests.matrix.running import Run, run
from tests.matrix.systems import end_all
from tests.support.processes import exit_on_sigterm

_FORM = "{:31} {:34} {:>6} {:>6} {:>7} {:>7}  {}"
_KEEPING = threading.Lock()  # what a row prints, and the results


def main() -> int:
    """Run what was asked for; the exit code is 1 if a row fails of which that was not known."""
    exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="make matrix", description="Runs the rows of the matrix.")
    parser.add_argument("rows", nargs="*", default=["*"], help="names of rows, or patterns")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--page", action="store_true", help="only write the page again, after a change of the rows")
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest for each row")
    parser.add_argument("--at-once", type=int, default=2, help="rows that run at once; default: %(default)s")
    given = parser.parse_args()
    chosen = [row for row in ROWS if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in given.rows)]
    if not chosen:
        parser.error(f"no row is called {' or '.join(given.rows)}")
    if given.page:
        page.save(page.load())
        return 0
    if given.list:
        for row in chosen:
            print(f"{row.name:31} {row.takes:8} {row.what}{f' (not available: {row.reason})' if row.reason else ''}")
        return 0
    print(_FORM.format("row", "found", "passed", "failed", "skipped", "seconds", "result"), flush=True)
    # The longest come first, as far as that is known, and none is waited for at the end.
    before = page.load()
    chosen.sort(key=lambda row: -before[row.name].seconds if row.name in before else 0)
    with ThreadPoolExecutor(given.at_once) as threads:
        try:
            as_expected = list(threads.map(partial(_try, workers=given.workers), chosen))
        except BaseException:  # Ctrl-C, or SIGTERM
            threads.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    return int(not all(as_expected))


def _try(row: Row, workers: int) -> bool:
    """Run a row, print its line, and keep the outcome. Whether it is as expected."""
    if row.reason:
        print(_FORM.format(row.name, "", "", "", "", "", f"not available: {row.reason}"), flush=True)
        return True
    done = run(row, workers=workers)
    with _KEEPING:
        return _keep(row, done)


def _keep(row: Row, done: Run) -> bool:
    before = page.verdict(row, page.load().get(row.name))
    outcome = done.outcome
    if not outcome.is_good and not outcome.unavailable and before != "known not to":
        print(done.output, file=sys.stderr, flush=True)
    result = page.verdict(row, outcome) if done.complete else "could not be run"
    numbers = (outcome.passed, outcome.failed, outcome.skipped, outcome.seconds)
    found = outcome.version.replace("\n", ", ")[:34]
    print(_FORM.format(row.name, found, *numbers, result), flush=True)
    if done.complete:
        page.save({**page.load(), row.name: outcome})
    return outcome.is_good or bool(outcome.unavailable) or (done.complete and before == "known not to")


if __name__ == "__main__":
    sys.exit(main())
