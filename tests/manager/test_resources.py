"""This machine is shared out: tasks with ``resources`` start when these are free, and know which ones are theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.holdings import holdings_of
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.jobs import inbox, manager_info
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lines import MOST_OVERTAKEN
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.manager.settings import Settings
from tests.manager.test_queue import Recorder
from tests.support.jobs import ended, read_log, task
from tests.support.managers import Managers, run_cli
from tests.support.waiting import wait_until

IDS = [str(number) for number in range(8)]
EIGHT = ("--max-concurrent-runners", "100", "--capacity", json.dumps({"gpus": IDS, "cpus": 100}))


class Place(NamedTuple):
    """A task of the test: the first one is the smallest."""

    priority: int  # of its job, negated
    number: int  # of its job
    position: int
    name: str
    gpus: int


class Tasks:
    """Tasks that say when they begin and end, and with which ids, and end when they may; and what the rule says.

    The rule is written down here a second time: from the order of the tasks and from the ends alone it follows which of
    them must have begun, and that no other has.
    """

    def __init__(self, store: JobStore, directory: Path) -> None:
        self.store = store
        self.log = directory / "log"
        self.go = directory / "go"
        self.go.mkdir()
        self.log.touch()
        self.waiting: list[Place] = []
        self.running: list[Place] = []
        self.overtaken: Counter[tuple[int, int, int]] = Counter()  # the first ones, by job and by what they need
        self.most_overtaken = 0
        self._jobs = 0

    def submit(self, name: str, gpus: list[int], priority: int = 0, **more: Any) -> None:
        self._jobs += 1
        places = [Place(-priority, self._jobs, at, f"{name}-{at}", number) for at, number in enumerate(gpus)]
        tasks = [task(place.name, self._line(place.name), resources={"gpus": place.gpus}, **more) for place in places]
        self.store.submit(name, tasks, priority=priority, max_parallel_tasks=len(tasks))
        self.waiting = sorted([*self.waiting, *places])

    def _line(self, name: str) -> str:
        begin, end = (f'echo "{word} {name} $AIR_EXECUTOR_GPUS $CUDA_VISIBLE_DEVICES" >> {self.log}' for word in "+-")
        return f"{begin}; until [ -e {self.go}/{name} ]; do sleep 0.05; done; {end}"

    def free(self) -> int:
        return len(IDS) - sum(place.gpus for place in self.running)

    def begin(self) -> None:
        """Those begin that can, by the rule."""
        while (place := self._next()) is not None:
            self.waiting.remove(place)
            self.running.append(place)
            for first in self._firsts():
                if first < place and first.gpus > self.free():
                    self.overtaken[first[:3]] += 1
                    self.most_overtaken = max(self.most_overtaken, self.overtaken[first[:3]])

    def _firsts(self) -> list[Place]:
        """The first one of those that need the same, of each."""
        found: dict[int, Place] = {}
        for place in self.waiting:
            found.setdefault(place.gpus, place)
        return list(found.values())

    def _next(self) -> Place | None:
        kept = 0
        for place in self._firsts():
            if place.gpus <= self.free() - kept:
                return place
            if self.overtaken[place[:3]] >= MOST_OVERTAKEN:
                kept += place.gpus
        return None

    def let_end(self, *places: Place) -> None:
        """Let tasks end, and wait until they have."""
        for place in places:
            (self.go / place.name).touch()
            self.running.remove(place)
        for place in places:
            wait_until(lambda name=place.name: f"- {name} " in self.log.read_text(), what=f"{place.name} ends")

    def check(self) -> None:
        """Wait until those have begun that must, and see that no other has, and that no id was held twice."""
        must = {place.name for place in self.running}
        wait_until(lambda: must <= self.read().keys(), what=f"{sorted(must - self.read().keys())} begin")
        assert self.read().keys() == must

    def read(self) -> dict[str, list[str]]:
        """The tasks that run by the log, and their ids."""
        found: dict[str, list[str]] = {}
        for line in self.log.read_text().splitlines():
            word, name, ids, visible = line.split(" ")
            assert ids == visible
            if word == "-":
                assert found.pop(name) == ids.split(",")
                continue
            assert name not in found, f"{name} runs twice"
            found[name] = ids.split(",")
            held = [one for each in found.values() for one in each]
            assert len(held) == len(set(held)), f"an id was held twice: {found}"
            assert set(held) <= set(IDS)
        return found

    def go_on(self, steps: int = 1000) -> None:
        """Let one task after the other end: that which runs for the longest time, or has more ids than others."""
        for number in range(steps):
            if not self.running:
                return
            self.let_end(self.running[0] if number % 3 else max(self.running, key=lambda place: place.gpus))
            self.begin()
            self.check()

    def number_begun(self) -> int:
        return sum(line.startswith("+") for line in self.log.read_text().splitlines())


@pytest.fixture
def tasks(store: JobStore, tmp_path: Path) -> Tasks:
    return Tasks(store, tmp_path)


def test_forty_tasks_share_eight_gpus(tasks: Tasks, managers: Managers) -> None:
    """No id is held twice, none idles while a task that may have it waits, and a large one has its turn."""
    managers.start(*EIGHT)
    tasks.submit("j", [4, 2, 4, 1, 2, 4, 1, 1, 4, 2] + [1, 1, 2, 1, 4] * 6)
    tasks.begin()
    tasks.check()
    tasks.go_on()
    assert ended(tasks.store, "j").state == "completed"
    assert tasks.number_begun() == 40
    assert tasks.most_overtaken <= MOST_OVERTAKEN


def test_a_large_one_starts_after_ten_small_ones_at_the_latest(tasks: Tasks, managers: Managers) -> None:
    managers.start(*EIGHT)
    tasks.submit("j", [1, 8, *[1] * 30])
    tasks.begin()
    tasks.check()
    while "j-1" not in [place.name for place in tasks.running]:
        tasks.let_end(tasks.running[-1])
        tasks.begin()
        tasks.check()
    assert tasks.number_begun() == 1 + MOST_OVERTAKEN + 1
    tasks.go_on()
    assert ended(tasks.store, "j").state == "completed"


def test_a_job_of_a_higher_priority_comes_first(tasks: Tasks, managers: Managers) -> None:
    managers.start(*EIGHT)
    tasks.submit("low", [8, 2, 4, 1, 2, 4])
    tasks.begin()
    tasks.check()
    tasks.submit("high", [4, 1, 2, 4, 1], priority=5)
    wait_until(lambda: info(tasks.store).queued == 10, what="both wait")
    tasks.go_on()
    assert {ended(tasks.store, name).state.value for name in ("low", "high")} == {"completed"}


@pytest.mark.parametrize("parallel", [1, 3])
def test_the_adopted_keep_theirs(tasks: Tasks, managers: Managers, parallel: int) -> None:
    """A manager is killed again and again, while some run and some end; nothing starts twice."""
    manager = managers.start(*EIGHT)
    tasks.submit("j", [4, 1, 2, 4, 2, 1, 1, 4, 2, 1, 4, 2, 8, 1, 1])
    tasks.begin()
    tasks.check()
    while tasks.running:
        managers.kill(manager)
        tasks.let_end(*tasks.running[:parallel])
        manager = managers.start(*EIGHT)
        tasks.overtaken.clear()  # it counts anew
        tasks.begin()
        tasks.check()
    assert ended(tasks.store, "j").state == "completed"
    assert tasks.number_begun() == 15


def test_kills_at_any_moment_give_no_id_twice(tasks: Tasks, managers: Managers) -> None:
    """Among them between the handle and the start of a command, and between this and its record."""
    manager = managers.start(*EIGHT)
    tasks.submit("j", [1, 2, 4] * 10)
    for number in range(30):
        (tasks.go / f"j-{number}").touch()  # each ends as soon as it has begun
    for _ in range(12):
        before = tasks.number_begun()
        wait_until(lambda before=before: tasks.number_begun() > before or over(tasks.store), what="something begins")
        managers.kill(manager)
        tasks.read()
        manager = managers.start(*EIGHT)
    assert ended(tasks.store, "j").state == "completed"
    assert tasks.read() == {}
    assert tasks.number_begun() == 30


def test_what_may_have_begun_comes_first_and_with_the_same_ids(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    """A manager was killed after it had written a handle, and it is not known whether it has started anything."""
    wait = f"echo $AIR_EXECUTOR_GPUS; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    store.submit("before", [task("a", wait, resources={"gpus": 2})])
    store.submit("urgent", [task("a", "echo $AIR_EXECUTOR_GPUS", resources={"gpus": 8})], priority=9)
    store.submit("gone", [task("a", resources={"gpus": 3})])
    for name, ids in (("before", ["6", "4"]), ("gone", ["0", "1", "2"])):
        store.paths(name).runs.mkdir(exist_ok=True)
        handle = {"starts": ["2026-11-30T12:00:00+00:00"], "cpus": 0, "memory": 0, "gpus": ids}
        store.paths(name).handle("a", 1, "local").write_text(json.dumps(handle))
    inbox.cancel(store, "gone")
    managers.start(*EIGHT)
    wait_until(lambda: read_log(store, "before", "a").text == "6,4\n", what="it begins")
    wait_until(lambda: (store.get_tasks("urgent")[0].where or "").endswith("(6 of 8 are free)"), what="one waits")
    (tmp_path / "go").touch()
    assert ended(store, "urgent").state == "completed"
    assert read_log(store, "urgent", "a").text == "0,1,2,3,4,5,6,7\n"


def over(store: JobStore) -> bool:
    return store.get_job("j").state.is_terminal


def info(store: JobStore) -> manager_info.ManagerInfo:
    found = manager_info.load(store)
    assert found is not None
    return found


def slots(store: JobStore) -> tuple[int, int]:
    """How many attempts run, and may run, as it was published last."""
    return tuple(info(store).slots.get("local", (0, 0)))  # type: ignore[return-value]


def held(store: JobStore) -> float:
    """How many ids are held, as it was published last."""
    return info(store).capacity["gpus"].used if info(store).capacity else -1


def test_what_a_cancelled_job_held_and_waited_for_is_free_for_others(tasks: Tasks, managers: Managers) -> None:
    managers.start(*EIGHT)
    tasks.submit("first", [4, 8])
    tasks.begin()
    tasks.check()
    tasks.submit("second", [8, 4])
    tasks.begin()
    tasks.check()
    inbox.cancel(tasks.store, "first")
    assert ended(tasks.store, "first").reason == "cancelled"
    second = tasks.store.get_tasks("second")
    tasks.waiting = [place for place in tasks.waiting if place.name == "second-0"]
    wait_until(
        lambda: "+ second-0 0,1,2,3,4,5,6,7 " in tasks.log.read_text() or "+ second-1 " in tasks.log.read_text(),
        what="the other job goes on",
    )
    assert len(second) == 2
    for place in ("second-0", "second-1"):
        (tasks.go / place).touch()
    assert ended(tasks.store, "second").state == "completed"


def test_one_cancelled_task_that_waits_keeps_nothing_from_others(tasks: Tasks, managers: Managers) -> None:
    managers.start(*EIGHT)
    tasks.submit("j", [1, 8, *[1] * 30])
    tasks.begin()
    while tasks.overtaken[0, 1, 1] < MOST_OVERTAKEN:
        tasks.let_end(tasks.running[-1])
        tasks.begin()
        tasks.check()
    assert tasks.free() > 0 or len(tasks.running) == 8
    inbox.cancel(tasks.store, "j", tasks=["j-1"])
    tasks.waiting = [place for place in tasks.waiting if place.name != "j-1"]
    tasks.begin()
    tasks.check()
    tasks.go_on()
    assert ended(tasks.store, "j").reason == "cancelled"


def test_a_task_that_cannot_be_started_gives_back_what_it_held(store: JobStore, managers: Managers) -> None:
    managers.start(*EIGHT)
    broken = [
        {"id": "none", "command": "/no/such/command", "resources": {"gpus": 8}},
        task("nowhere", cwd="/no/such/directory", resources={"gpus": 8}),
        task("fails", "exit 3", resources={"gpus": 8}, retries=2),
        task("never", resources={"gpus": 9}),
        task("last", "echo $AIR_EXECUTOR_GPUS", resources={"gpus": 8}),
    ]
    store.submit("j", broken, max_parallel_tasks=5)
    ended(store, "j")
    found = {each.id: each for each in store.get_tasks("j")}
    reasons = {name: found[name].reason and str(found[name].reason) for name in found}
    assert reasons == {"none": "spawn", "nowhere": "spawn", "fails": "exit", "never": "spawn", "last": None}
    assert found["never"].error == "it needs 9 gpus; this machine has 8 for local tasks"
    assert read_log(store, "j", "last").text == "0,1,2,3,4,5,6,7\n"
    wait_until(lambda: held(store) == 0, what="nothing is held")


def test_other_resources_and_jobs_that_run_in_order(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """One task after the other: none overtakes an earlier one of the job, whatever that waits for."""
    managers.start("--capacity", '{"cpus": 2, "memory": "1Gi"}')
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    store.submit("full", [task("a", wait, resources={"cpus": 1.5, "memory": "600Mi"})])
    wait_until(lambda: slots(store)[0] == 1, what="it runs")
    store.submit("in_order", [task("a", resources={"cpus": 1}), task("b")], max_parallel_tasks=1)
    store.submit("together", [task("a", resources={"memory": "600Mi"}), task("b")], max_parallel_tasks=2)
    store.submit("fits", [task("a", resources={"cpus": 0.5, "memory": "1Mi"})])
    assert ended(store, "fits").state == "completed"
    wait_until(lambda: store.get_tasks("together")[1].status == "completed", what="another task goes on")

    def where(job: str) -> str | None:
        return store.get_tasks(job)[0].where

    wait_until(lambda: where("in_order") == "waits for 1 cpu (0.5 of 2 are free)", what="it says what it waits for")
    expected = "waits for 600 MiB of memory (424 MiB of 1 GiB are free)"
    wait_until(lambda: where("together") == expected, what="the other says it, too")
    assert store.get_tasks("in_order")[1].status == "pending"
    (tmp_path / "go").touch()
    for name in ("in_order", "together"):
        assert ended(store, name).state == "completed"
        assert where(name) is None


def test_pause_and_slots_hold_for_them_as_for_others(tasks: Tasks, managers: Managers) -> None:
    managers.start(*EIGHT)
    jobs = FileJobs(tasks.store)
    jobs.set_slots(2, "local")
    tasks.submit("j", [1, 1, 1, 8])
    wait_until(lambda: tasks.read().keys() == {"j-0", "j-1"}, what="two have begun")
    jobs.set_paused(True)
    wait_until(lambda: info(tasks.store).paused, what="it is paused")
    (tasks.go / "j-0").touch()
    wait_until(lambda: slots(tasks.store) == (1, 2), what="one has ended")
    assert tasks.read().keys() == {"j-1"}
    jobs.set_paused(False)
    for name in ("j-1", "j-2", "j-3"):
        (tasks.go / name).touch()
    assert ended(tasks.store, "j").state == "completed"
    tasks.read()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")
@pytest.mark.parametrize("runner", ["local", "warm"])
def test_warm_ones_are_told_before_anything_of_theirs_runs(
    store: JobStore, managers: Managers, tmp_path: Path, runner: str
) -> None:
    """And who asks for none has what the manager has."""
    (tmp_path / "show.py").write_text(
        "import os\nprint(*(os.environ.get(name) for name in NAMES))\n".replace(
            "NAMES", "('CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'AIR_EXECUTOR_GPUS')"
        )
    )
    managers.environment |= {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "5,3"}
    managers.start("--capacity", '{"gpus": null}')
    show = {"command": sys.executable, "args": ["-m", "show"], "runner": runner}
    asked = [{}, {"resources": {"gpus": 0}}, {"resources": {"cpus": 0.1}}, {"resources": {"gpus": 1}}]
    asked += [{"resources": {"gpus": 2}}]
    store.submit("j", [{"id": f"t{number}", **show, **more} for number, more in enumerate(asked)])
    assert ended(store, "j").state == "completed"
    printed = [read_log(store, "j", f"t{number}").text for number in range(5)]
    assert printed == ["5,3 None None\n"] * 3 + ["5 5 5\n", "5,3 5,3 5,3\n"]


def test_what_is_free_is_shown(tasks: Tasks, managers: Managers) -> None:
    managers.start("--max-concurrent-runners", "9", "--capacity", '{"gpus": "a,b,c", "cpus": 4, "memory": "8Gi"}')
    tasks.submit("j", [2, 2])
    wait_until(lambda: (tasks.store.get_tasks("j")[1].where or "").startswith("waits for 2 gpus"), what="it waits")
    wait_until(lambda: held(tasks.store) == 2, what="it is published")

    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_cli([*arguments, "--base-path", str(tasks.store.base_path)], managers.environment)

    assert "4 of 4 cpus; 8.0Gi of 8.0Gi memory; 1 of 3 gpus (c)" in said("info").stdout
    assert json.loads(said("info", "--json").stdout)["capacity"]["gpus"] == {"used": 2, "limit": 3, "free_ids": ["c"]}
    assert "waits for 2 gpus (1 of 3 is free)" in said("status", "j").stdout
    metrics = said("metrics").stdout.splitlines()
    assert 'air_executor_capacity_used{resource="gpus"} 2' in metrics
    assert 'air_executor_capacity{resource="gpus"} 3' in metrics
    for name in ("j-0", "j-1"):
        (tasks.go / name).touch()
    assert ended(tasks.store, "j").state == "completed"
    assert tasks.store.get_tasks("j")[1].where is None


NEEDS = st.sampled_from([None, {"gpus": 1}, {"gpus": 2}, {"gpus": 4}, {"cpus": 2}, {"gpus": 1, "cpus": 1}, {"cpus": 4}])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.lists(NEEDS, min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 1)),
        st.tuples(st.just("end"), st.integers(1, 3)),
    ),
    max_size=25,
)


# A job that runs as many tasks as it may stands before another one that needs the same.
AT_ITS_LIMIT: list[tuple[Any, ...]] = [
    ("submit", [{"cpus": 4}], 1, 0),
    ("submit", [{"cpus": 2}], 2, 0),
    ("submit", [None, None, {"cpus": 2}, None], 3, 1),
    ("end", 1),
]


@example(steps=AT_ITS_LIMIT, slots=4)
@given(steps=STEPS, slots=st.integers(2, 12))
def test_whatever_comes_all_is_shared_out_and_all_of_it_runs(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], slots: int
) -> None:
    """At each moment no more is held than there is, and nothing that fits waits unless something is kept."""
    store = JobStore(tmp_path_factory.mktemp("shared"))
    engine, settings = Recorder(), Settings(base_path=str(store.base_path), max_concurrent_runners=slots)
    engine.holdings = holdings_of(store, {}, Children(), cpus=4, memory=2**30, gpus=4)  # type: ignore[attr-defined]
    manager = Manager(store, settings, Engines(store, settings, engine, {}, Children()))  # type: ignore[arg-type]
    capacity, lines = manager.shared.engines.holdings.capacity, manager.shared.queue.lines
    submitted = 0
    with ManagerLock(store):
        manager.recover()
        for number, step in enumerate([*steps, *[("end", 99)] * 200]):
            if step[0] == "submit":
                _, needs, parallel, priority = step
                given_ = [{"id": f"t{at}", "bash": "true", "resources": one} for at, one in enumerate(needs)]
                store.submit(f"j{number}", given_, priority=priority, max_parallel_tasks=parallel, durable=False)
                submitted += len(given_)
            else:
                engine.end(step[1])
            manager.changes.next_pass = 0.0
            manager.tick()
            assert all(amount >= 0 for amount in capacity.free)
            assert len(engine.running) <= slots
            has_room = len(engine.running) < slots
            if has_room and not any(line.is_kept_for for line in lines):
                for job in manager.shared.jobs.active.values():
                    ready = [one for one in job.graph.needs if one is not None] if job.can_start else []
                    assert not any(capacity.has(one) for one in ready), ready
            assert all(line.overtaken <= MOST_OVERTAKEN for line in lines)
            if step[0] == "end" and len(engine.started) == submitted and not engine.running:
                break
        assert len(engine.started) == submitted
        assert capacity.free == capacity.total
        manager.shared.notifier.close()
