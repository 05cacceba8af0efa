"""What holds where an engine runs several tasks of a job together, one after the other."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from pathlib import Path

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.outputs import read_outputs
from airflow_provider_air_executor.jobs.store import JobStore
from tests.engines.contract import Engine
from tests.support.jobs import ended, read_log, task
from tests.support.managers import Managers
from tests.support.waiting import wait_until

_LOCATION = re.compile(r"(?:job|Pod) ([^ ,]+)")  # what several tasks may share


class BatchContract:
    """Tests with a manager whose tasks share what the engine starts, ten at a time (fixture ``batched``)."""

    def test_a_batch(self, store: JobStore, batched: object, engine: Engine) -> None:
        """Each task has its own log, result and end; one that fails does not stop the others."""
        ends = ["exit 3", "kill -SEGV $$", *["true"] * 22, "exit 4"]
        line = 'echo "{0}, $W"; [ "$W" = {0} ] && echo "[{0}]" > $AIR_EXECUTOR_OUTPUT; pwd{2}; {1}'
        tasks = [
            task(f"t{number}", line.format(number, end, engine.last_word), env={"W": f"{number}"}, cwd="/usr")
            for number, end in enumerate(ends)
        ]
        store.submit("j", tasks, max_parallel_tasks=25)
        ended(store, "j")
        found = store.get_tasks("j")
        assert [task.exit_code for task in found] == [3, 139, *[0] * 22, 4]
        assert read_outputs(store.paths("j"), store.get_tasks("j")) == {
            f"t{number}": [number] for number in range(2, 24)
        }
        # One that had ended before sbatch did is not known to have been anywhere.
        names = {location[1] for task in found if (location := _LOCATION.search(task.where or ""))}
        assert len(names) == 3
        for number, done in enumerate(found):
            text = read_log(store, "j", done.id).text.removesuffix("Segmentation fault\n")  # sh may say so
            assert text == f"{number}, {number}\n/usr\n"
            assert done.started_at is not None
            assert done.completed_at is not None
            assert done.started_at <= done.completed_at

    def test_what_cannot_be_begun(self, store: JobStore, batched: object) -> None:
        tasks = [
            {"id": "command", "command": "no-such-command", "env": {"QUOTE": 'it\'s "$HOME"\n'}},
            {"id": "directory", "command": "true", "cwd": "/no/such directory"},
            task("fine", '[ "$QUOTE" = "it\'s \\"\\$HOME\\"\n" ]', env={"QUOTE": 'it\'s "$HOME"\n'}),
        ]
        store.submit("j", tasks, max_parallel_tasks=3)
        ended(store, "j")
        found = {task.id: task for task in store.get_tasks("j")}
        assert [found[name].reason for name in ("command", "directory", "fine")] == ["spawn", "spawn", None], found
        assert "no-such-command was not found" in (found["command"].error or "")
        assert "directory /no/such directory (field cwd) does not exist" in (found["directory"].error or "")

    def test_a_batch_and_managers(
        self, store: JobStore, managers: Managers, batched: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        line = "date +%s > {1}/begun{0}; echo {0} >> {1}/ran; echo {0}; sleep 0.3"
        tasks = [task(f"t{number}", line.format(number, tmp_path)) for number in range(20)]
        store.submit("j", tasks, max_parallel_tasks=20)
        manager = batched
        for seconds in (0.0, 0.05, 1, 2):
            time.sleep(seconds)
            managers.kill(manager)
            manager = managers.start()
        assert ended(store, "j").state == "completed"
        assert sorted((tmp_path / "ran").read_text().split(), key=int) == [str(number) for number in range(20)]
        assert [read_log(store, "j", f"t{number}").text for number in range(20)] == [f"{each}\n" for each in range(20)]
        # Each has its own start, in whole seconds, and not that at which ten of them were handed over. What had not yet
        # been handed over when its manager was killed shares with nobody.
        found = store.get_tasks("j")
        starts = [done.started_at.timestamp() for done in found if done.started_at is not None]
        files = [tmp_path / f"begun{number}" for number in range(20)]
        begun = [int(file.read_text()) for file in files]
        assert all(start <= own + 1 for start, own in zip(starts, begun, strict=True))
        locations = [_LOCATION.search(done.where or "") for done in found]
        for name in {location[1] for location in locations if location}:
            shared = [number for number, location in enumerate(locations) if location and location[1] == name]
            in_order = sorted(shared, key=lambda number: files[number].stat().st_mtime)
            assert all(starts[later] >= begun[earlier] for earlier, later in itertools.pairwise(in_order))

    def test_a_batch_is_cancelled(
        self, store: JobStore, managers: Managers, batched: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        managers.kill(batched)
        managers.start("--kill-grace", "30")
        line = f"trap 'echo cleaned; exit 9' TERM; echo x >> {tmp_path}/ran; while :; do sleep 0.1; done"
        store.submit("j", [task(f"t{number}", line) for number in range(10)], max_parallel_tasks=10)
        wait_until((tmp_path / "ran").exists, what="the first runs")
        inbox.cancel(store, "j")
        assert ended(store, "j").reason == "cancelled"
        assert {task.reason for task in store.get_tasks("j")} == {"cancelled"}
        assert (tmp_path / "ran").read_text() == "x\n"
        assert "cleaned" in read_log(store, "j", "t0").text

    def test_a_timeout_in_a_batch(self, store: JobStore, batched: object, tmp_path: Path) -> None:
        """What the others do is their own affair, even if it must be killed."""
        line = f"trap : TERM; echo x >> {tmp_path}/ran; while :; do sleep 0.1; done"
        stubborn = task("stubborn", line, timeout=5)
        others = [task(f"t{number}", f"echo x >> {tmp_path}/others") for number in range(4)]
        store.submit("j", [others[0], stubborn, *others[1:]], max_parallel_tasks=5)
        ended(store, "j")
        found = {task.id: (task.status, task.reason, task.attempt) for task in store.get_tasks("j")}
        assert found.pop("stubborn") == ("failed", "timeout", 1)
        assert set(found.values()) == {("completed", None, 1)}, [task.error for task in store.get_tasks("j")]
        assert (tmp_path / "ran").read_text() == "x\n"
        assert (tmp_path / "others").read_text() == 4 * "x\n"
