"""What the manager does with the reports of its tasks: it has packages tried, and says which to import ahead."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.local.learning import ledger, worth
from airflow_provider_air_executor.engines.local.learning.executing import Executing
from airflow_provider_air_executor.engines.local.learning.ledger import Ledger, Package, SeenFile, Verdict
from airflow_provider_air_executor.engines.local.learning.report import Report, WatchReport, in_a_line
from airflow_provider_air_executor.engines.local.learning.trial import TOO_LONG, Outcome, Trial
from airflow_provider_air_executor.engines.local.learning.worth import LEAST_TASKS, Candidate
from airflow_provider_air_executor.system import installed

log = logging.getLogger("air_executor.manager")

_MOST_MEMORY = 512 << 20
_SHARE_OF_MACHINE = 10  # one part in so many
_LEAST_USE = 0.5  # tasks lately; with fewer, a package is not imported ahead any more
_WRITE_SECONDS = 10.0
_CHOOSE_SECONDS = 1.0
_OBSERVE_SECONDS = 86400.0  # after which a task of a file is looked at again without anything that was learned
_ASK_SECONDS = 60.0  # during which one task of it is enough
_HOLD_SECONDS = 86400.0  # after which a trial that took too long is made again
_MOST_TRIES = 3  # of what took too long
_MEGABYTE = 1 << 20
_LAST_MOMENT = 253e9  # in the year 9987


class Learner:
    """Learns which packages are worth importing ahead. Everything here is quick: the trials are made elsewhere.

    :param base_path: of the manager; the ledger is kept there.
    :param memory_cap: bytes that all that is imported ahead may take; default: a tenth of the machine's, up to 512 MB.
    :param clock: the time, in seconds since 1970.
    """

    def __init__(
        self, base_path: Path, *, memory_cap: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = Ledger(base_path)
        self._cap = _default_cap() if memory_cap is None else memory_cap
        self._clock = clock
        self._choice = _Choice()
        self._waits: dict[str, set[str]] = {}  # packages whose trial waits for that of others
        self._asked: dict[str, float] = {}  # when a task of a file was last sent to the base to be looked at
        self._executing = Executing()
        self._cost: tuple[float, int] | None = None  # of the generation that serves
        self._written_at = 0.0
        self._is_changed = False
        self.recheck()

    def take(self, report: bytes) -> None:
        """Count what a task has sent; anything may be in it."""
        watched = WatchReport.parse(report)
        if watched is not None:
            self._executing.take(watched)
            return
        found = Report.parse(report)
        if found is None:
            log.debug("a report on imports that is not one has been ignored")
            return
        self._ledger.add(found, self._clock())
        self._asked.pop(found.key, None)
        self._is_changed = True

    def next_trial(self) -> Trial | None:
        """What is to be tried next; None if there is nothing."""
        tasks = self._ledger.tasks_of(self._clock())
        packages = self._ledger.packages
        pending = [root for root, package in packages.items() if self._is_pending(root, package, tasks)]
        if not pending:
            return None
        free = [root for root in pending if not self._waits.get(root, set()) & set(pending)] or pending
        root = min(free, key=_is_of_python)  # the first one: packages were reported after those that they need
        package = packages[root]
        verdict = package.verdict
        first = verdict.names if verdict is not None else (root,)
        names = dict.fromkeys((*first, *package.untried(LEAST_TASKS)))
        return Trial(root, tuple(names), self._after(root))

    def _is_pending(self, root: str, package: Package, tasks: dict[str, float]) -> bool:
        if package.seen < LEAST_TASKS or tasks.get(root, 0.0) < _LEAST_USE:
            return False
        verdict = package.verdict
        if verdict is None:
            return True
        if verdict.why_not == TOO_LONG and verdict.tries < _MOST_TRIES:  # the machine may have been busy
            return self._clock() - verdict.at > _HOLD_SECONDS
        return not verdict.why_not and bool(package.untried(LEAST_TASKS))

    def _after(self, root: str) -> tuple[str, ...]:
        """The modules of the packages that a package needs, as far as they have passed."""
        verdict = self._ledger.packages[root].verdict
        needs = set(self._waits.get(root, ())) | set(verdict.needs if verdict is not None else ())
        seen, order = {root}, list[str]()
        for need in sorted(needs):
            self._add_after(need, seen, order)
        return tuple(name for need in order for name in _names(self._ledger.packages[need]))

    def _add_after(self, root: str, seen: set[str], order: list[str]) -> None:
        """Add a package that has passed after all that it needs."""
        package = self._ledger.packages.get(root)
        if root in seen or package is None or package.verdict is None:
            return
        seen.add(root)
        for need in package.verdict.needs:
            self._add_after(need, seen, order)
        order.append(root)

    def tried(self, trial: Trial, outcome: Outcome) -> None:
        """Note how a trial has ended."""
        package = self._ledger.packages.get(trial.root)
        if package is None or self._must_wait(trial, outcome):
            return
        self._is_changed = True
        self._choice.is_due = True
        others = [name for name in trial.names if name != trial.root and name not in _names(package)]
        if not outcome.why_not or not others:
            package.tried.update(trial.names)
            self._decide(trial, package, outcome)
            return
        last = outcome.names[-1] if outcome.names else ""  # which has failed, if its import has
        if last in others and outcome.why_not.startswith(f"importing {last} "):
            others = [last]
        package.leave_out(others)
        log.info("%s is to be imported ahead without %s: %s", trial.root, ", ".join(others[:3]), outcome.why_not)

    def failed(self, name: str, why_not: str) -> None:
        """Note that a module must not be imported ahead after all, although its package has passed its trial."""
        root = self._ledger.root_of(name)
        package = self._ledger.packages.get(root)
        if package is None or package.verdict is None:
            return
        self._is_changed = self._choice.is_due = True
        if name == root:
            package.verdict.why_not = in_a_line(why_not)
        else:
            package.leave_out([name])
            package.verdict.names = tuple(one for one in package.verdict.names if one != name)
        log.info("%s is not imported ahead of the tasks any more: %s", name, in_a_line(why_not))

    def _must_wait(self, trial: Trial, outcome: Outcome) -> bool:
        """Whether packages that were imported with it are to be tried before it; that is so once."""
        if trial.root in self._waits:
            return False
        tasks = self._ledger.tasks_of(self._clock())
        packages = self._ledger.packages
        found = {need for need in self._needs(trial, outcome) if not _is_of_python(need)}
        needs = {need for need in found if packages[need].has_passed or self._is_pending(need, packages[need], tasks)}
        if needs:
            self._waits[trial.root] = needs
        return bool(needs)

    def _needs(self, trial: Trial, outcome: Outcome) -> set[str]:
        """The packages that were imported with another one, as far as tasks have reported them."""
        found = {self._ledger.root_of(need) for need in outcome.needs}
        return {need for need in found if need in self._ledger.packages and need != trial.root}

    def _decide(self, trial: Trial, package: Package, outcome: Outcome) -> None:
        packages = self._ledger.packages
        imported = self._needs(trial, outcome)
        needs = imported | self._waits.pop(trial.root, set())
        if package.verdict is not None:
            needs.update(package.verdict.needs)
        why_not = outcome.why_not
        for need in sorted(imported):
            verdict = packages[need].verdict
            if verdict is not None and verdict.why_not:
                why_not = f"it imports {need}: {verdict.why_not}"
        tries = 1 if package.verdict is None else package.verdict.tries + 1
        package.verdict = Verdict(
            self._clock(),
            ledger.stamp(trial.root, installed.directories()),
            why_not,
            outcome.cpu_seconds,
            outcome.memory_bytes,
            tuple(dict.fromkeys((trial.root, *outcome.names))),
            tuple(sorted(needs)),
            outcome.changed,
            tries,
        )
        if why_not:
            log.info("%s is not imported ahead of the tasks: %s", trial.root, why_not)

    def modules(self) -> tuple[str, ...]:
        """What the next generation is to import, in this order; nothing at first."""
        now = self._clock()
        if self._choice.is_due or not 0 <= now - self._choice.at < _CHOOSE_SECONDS:
            self._choose(now)
        return self._choice.names

    def _choose(self, now: float) -> None:
        candidates = {}
        tasks = self._ledger.tasks_of(now)
        for root, package in self._ledger.packages.items():
            verdict = package.verdict
            if verdict is not None and not verdict.why_not and tasks.get(root, 0.0) >= _LEAST_USE:
                memory = int(verdict.memory * self._choice.scale)
                candidates[root] = Candidate(root, tasks[root], verdict.cpu_seconds, memory, verdict.needs)
        chosen = worth.choose(candidates, self._cap, self._choice.since)
        names = tuple(name for root in chosen for name in _names(self._ledger.packages[root]))
        self._choice.take(chosen, names, now)

    def goes_to_base(self, key: str | None) -> bool:
        """Whether a task must be forked from a process that has imported nothing of what was learned.

        That is so if its file changes the environment, which would come too late for what has been imported. Nothing is
        known of a file that has not been seen; and one that was seen is looked at again after a day.
        """
        file = None if key is None else self._ledger.files.get(key)
        if key is None or file is None or not file.observed_at or self._changed(file):
            return True
        now = self._clock()
        if 0 <= now - file.observed_at < _OBSERVE_SECONDS or 0 <= now - self._asked.get(key, 0.0) < _ASK_SECONDS:
            return False
        self._asked[key] = now
        return True

    def hint(self, key: str | None, beside: int) -> dict[str, Any]:
        """What the process of a task is told of its file, see :meth:`.Executing.hint`."""
        file = None if key is None else self._ledger.files.get(key)
        if key is None or file is None or not file.observed_at or self._changed(file):
            return {}
        return self._executing.hint(key, file.parse_seconds, beside)

    def _changed(self, file: SeenFile) -> list[str]:
        """The variables that a file changes, without those that are changed by packages which it imports."""
        if not file.changed:
            return []
        packages = self._ledger.packages
        verdicts = [packages[root].verdict for root in file.roots if root in packages]
        by_packages = {name for verdict in verdicts if verdict is not None for name in verdict.changed}
        return [name for name in file.changed if name not in by_packages]

    def imported(self, seconds: float, memory: int) -> None:
        """Note what the generation that serves has cost.

        :param seconds: of CPU.
        :param memory: bytes of its own. If that is more than the trials have said, less is imported next.
        """
        self._cost = seconds, memory
        verdicts = [self._ledger.packages[root].verdict for root in self._choice.since if root in self._ledger.packages]
        expected = sum(verdict.memory for verdict in verdicts if verdict is not None)
        if memory > self._cap and expected:
            self._choice.scale = max(self._choice.scale, min(4.0, memory / expected))
            self._choice.is_due = True

    def recheck(self) -> None:
        """Forget the trials of packages that have changed since."""
        within = installed.directories()
        for root, package in self._ledger.packages.items():
            if package.verdict is not None and package.verdict.stamp != ledger.stamp(root, within):
                package.forget()
                self._is_changed = self._choice.is_due = True

    def write(self, *, now: bool = False) -> None:
        """Write the ledger if there is something new.

        :param now: whether it must not wait for more.
        """
        if not self._is_changed or not (now or time.monotonic() - self._written_at >= _WRITE_SECONDS):
            return
        self._written_at = time.monotonic()
        try:
            self._ledger.write()
            self._is_changed = False
        except OSError as error:
            log.warning("%s cannot be written: %s", self._ledger.path, error.strerror)

    def describe(self) -> dict[str, Any]:
        """What is known, as plain data."""
        now = self._clock()
        self.modules()
        tasks = self._ledger.tasks_of(now)
        packages = self._ledger.packages
        verdicts = {root: package.verdict for root, package in packages.items() if package.verdict is not None}
        return {
            "modules": [
                {
                    "name": root,
                    "ms": round(1000 * verdicts[root].cpu_seconds),
                    "mb": round(verdicts[root].memory / _MEGABYTE, 1),
                    "since": _moment(since),
                    "tasks_per_day": round(tasks.get(root, 0.0), 1),
                }
                for root, since in self._choice.since.items()
            ],
            "refused": [
                {"name": root, "why": verdict.why_not, "since": _moment(verdict.at)}
                for root, verdict in sorted(verdicts.items())
                if verdict.why_not
            ],
            "files": [
                {
                    "name": key,
                    "tasks_per_day": round(file.tasks_at(now), 1),
                    "parse_ms": round(1000 * file.parse_seconds),
                    "changes": self._changed(file),
                    "ahead": self._executing.describe(key),
                    "where": "base" if not file.observed_at or self._changed(file) else "generation",
                }
                for key, file in reversed(self._ledger.files.items())
            ],
            "waiting": [root for root, package in packages.items() if self._is_pending(root, package, tasks)],
            "memory_cap_mb": round(self._cap / _MEGABYTE),
            "imported": None
            if self._cost is None
            else {"seconds": self._cost[0], "mb": round(self._cost[1] / _MEGABYTE, 1)},
        }


class _Choice:
    """The packages that are to be imported ahead."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}  # when each was chosen
        self.names: tuple[str, ...] = ()
        self.at = 0.0
        self.is_due = True
        self.scale = 1.0  # how much more memory they take than their trials have said

    def take(self, chosen: tuple[str, ...], names: tuple[str, ...], now: float) -> None:
        """Note a new choice."""
        self.since = {root: self.since.get(root, now) for root in chosen}
        self.names, self.at, self.is_due = names, now, False


def _moment(at: float) -> str:
    """A time in words; what has not come from a clock may be any number."""
    return datetime.fromtimestamp(min(at, _LAST_MOMENT), UTC).isoformat()


def _is_of_python(root: str) -> bool:
    """Whether a package comes with Python: these take little time, and are tried last."""
    return root.partition(".")[0] in sys.stdlib_module_names


def _names(package: Package) -> tuple[str, ...]:
    """What has to be imported of a package that has passed."""
    return package.verdict.names if package.verdict is not None and package.has_passed else ()


def _default_cap() -> int:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(_MOST_MEMORY, machine // _SHARE_OF_MACHINE))
