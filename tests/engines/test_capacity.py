"""What this machine has for tasks: by its affinity, its control groups and its graphics processors, or as it is set."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.capacity import Amounts, Capacity, Holding
from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local import gpus
from airflow_provider_air_executor.engines.local.gpus import listed_ids, visible_ids
from airflow_provider_air_executor.engines.local.holdings import Holdings, holdings_of
from airflow_provider_air_executor.engines.protocol import Attempt, Ended, ResourceExhaustedError, Running, SpawnError
from airflow_provider_air_executor.jobs.models import Resources, Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import machine
from tests.support.waiting import wait_until

GIB = 2**30
LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA H200 (UUID: GPU-4f1c1a3a-0f2e-8a0b-6f52-7e0d2b1f7c11)
"""
IDS = [
    "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
    "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
    "GPU-4f1c1a3a-0f2e-8a0b-6f52-7e0d2b1f7c11",
]


def attempt(name: str = "a", number: int = 1) -> Attempt:
    return Attempt.of("j", name, number)


def needing(**resources: object) -> Task:
    return Task(id="a", command="true", resources=Resources.model_validate(resources))


class TestAmounts:
    def test_whole_numbers_of_what_a_task_asks_for(self) -> None:
        asked = Resources.model_validate({"cpus": 0.1, "memory": "1Gi", "gpus": 2})
        assert Amounts.of(asked) == Amounts(cpus=100, memory=GIB, gpus=2)

    @pytest.mark.parametrize("asked", [{}, {"time": 60}, {"gpus": 0}])
    def test_who_asks_for_nothing_waits_for_nothing(self, asked: dict[str, int]) -> None:
        assert Amounts.of(Resources.model_validate(asked)) is None
        assert Amounts.of(None) is None


class TestCapacity:
    def test_what_is_given_back_is_free_again(self) -> None:
        found = Capacity(0.3, GIB, "abc")
        first, second = attempt("a"), attempt("b")
        assert found.take(first, Amounts(cpus=100, gpus=2)).gpus == ("a", "b")
        found.take(second, Amounts(cpus=100, gpus=1))
        assert (found.free, found.free_gpus) == (Amounts(100, GIB, 0), ())
        found.release(first)
        assert found.free_gpus == ("a", "b")
        found.release(second)
        found.release(second)
        assert found.free == found.total

    def test_what_another_manager_gave_counts_even_if_there_is_less_now(self) -> None:
        found = Capacity(1, GIB, "ab")
        found.hold(attempt(), Holding(Amounts(cpus=4000, gpus=2), ("b", "c")))
        assert found.free_gpus == ("a",)
        assert not found.has(Amounts(cpus=1))
        assert found.has(Amounts(gpus=1))

    @pytest.mark.parametrize(
        ("needed", "words"),
        [
            (Amounts(gpus=4), "waits for 4 gpus (2 of 8 are free)"),
            (Amounts(gpus=3, cpus=2000), "waits for 2 cpus (1.5 of 4 are free) and 3 gpus (2 of 8 are free)"),
            (Amounts(memory=3 * GIB), "waits for 3 GiB of memory (2.5 GiB of 4 GiB are free)"),
            (Amounts(gpus=1), "waits for 1 gpu (2 of 8 are free), which are kept for a task before it"),
        ],
    )
    def test_what_a_task_waits_for_in_words(self, needed: Amounts, words: str) -> None:
        found = Capacity(4, 4 * GIB, map(str, range(8)))
        found.take(attempt(), Amounts(cpus=2500, memory=3 * GIB // 2, gpus=6))
        assert found.why_waits(needed) == words

    def test_while_it_is_not_known_which_gpus_there_are_a_task_waits(self) -> None:
        found = Capacity(4, GIB, None)
        assert not found.has(Amounts(gpus=1))
        assert not found.can_never_have(Amounts(gpus=99))
        assert "it is being found out" in found.why_waits(Amounts(gpus=2))
        assert "gpus" not in found.shares()
        found.know_gpus(["7"])
        assert found.has(Amounts(gpus=1))
        assert found.why_never(Amounts(gpus=99)) == "it needs 99 gpus; this machine has 1 for local tasks"
        assert found.shares()["gpus"] == (0, 1, ("7",))


class TestMachine:
    @pytest.fixture
    def groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The control groups, of which this process is in ``a/b``."""
        monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(machine, "_OF_PROCESS", tmp_path / "of_process")
        (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
        (tmp_path / "of_process").write_text("0::/a/b\n")
        return tmp_path / "groups"

    @pytest.mark.parametrize("where", [".", "a", "a/b"])
    def test_the_quota_of_a_control_group_or_of_one_above_limits_the_processors(self, groups: Path, where: str) -> None:
        (groups / "a/b/cpu.max").write_text("max 100000\n")
        (groups / where / "cpu.max").write_text("50000 100000\n")
        assert machine.processors() == 0.5

    @pytest.mark.parametrize("where", [".", "a", "a/b"])
    def test_so_does_its_limit_of_memory(self, groups: Path, where: str) -> None:
        (groups / "a/b/memory.max").write_text("max\n")
        (groups / where / "memory.max").write_text("60000000\n")
        assert machine.memory() == 60_000_000

    @pytest.mark.parametrize("where", ["", "x", "x/y"])
    def test_control_groups_of_version_1(self, groups: Path, where: str) -> None:
        (groups.parent / "of_process").write_text("5:cpu,cpuacct:/x/y\n4:memory:/x/y\n1:name=systemd:/z\n0::/\n")
        for controller in ("cpu,cpuacct", "memory"):
            (groups / controller / "x/y").mkdir(parents=True)
        (groups / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("-1\n")
        (groups / "cpu,cpuacct" / where / "cpu.cfs_quota_us").write_text("75000\n")
        (groups / "cpu,cpuacct" / where / "cpu.cfs_period_us").write_text("100000\n")
        (groups / "memory" / where / "memory.limit_in_bytes").write_text("70000000\n")
        assert (machine.processors(), machine.memory()) == (0.75, 70_000_000)

    def test_without_limits_it_is_the_machine(self, groups: Path) -> None:
        (groups.parent / "of_process").unlink()
        assert machine.processors() == len(os.sched_getaffinity(0))
        assert machine.memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class TestGpus:
    def test_a_divided_one_is_there_by_its_parts(self) -> None:
        assert listed_ids(LISTED) == IDS
        assert listed_ids("No devices were found\n") == []

    @pytest.mark.parametrize(
        ("environment", "ids"),
        [
            ({}, None),
            ({"CUDA_VISIBLE_DEVICES": "2, 3"}, ["2", "3"]),
            ({"CUDA_VISIBLE_DEVICES": ""}, []),
            ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, ["1"]),
            ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
            ({"HIP_VISIBLE_DEVICES": "1"}, ["1"]),
        ],
    )
    def test_the_environment_may_leave_a_part_of_them(
        self, environment: Mapping[str, str], ids: list[str] | None
    ) -> None:
        assert visible_ids(environment) == ids

    @pytest.mark.parametrize(
        ("given", "visible", "ids"),
        [
            (["a", "b"], None, ("a", "b")),
            (["0", "1", "2"], "2,1,7", ("1", "2")),
            (["GPU-x"], "0", ("GPU-x",)),
            (2, None, ("0", "1")),
            (2, "5,6,7", ("5", "6")),
            (0, None, ()),
            (None, "3", ("3",)),
        ],
    )
    def test_which_ones_are_for_tasks(
        self, store: JobStore, given: int | Sequence[str] | None, visible: str | None, ids: tuple[str, ...]
    ) -> None:
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        assert holdings_of(store, environment, Children(), gpus=given).capacity.free_gpus == ids

    def _found(self, store: JobStore, path: Path) -> Capacity:
        children = Children()
        found = holdings_of(store, {"PATH": str(path)}, children)
        assert not found.capacity.is_known_for(Amounts(gpus=1)), "nothing is looked for before a task asks"
        assert found.needs(needing(cpus=1)) is not None

        def is_known() -> bool:
            found.needs(needing(gpus=1))
            children.reap()
            found.expire()
            return found.capacity.is_known_for(Amounts(gpus=1))

        wait_until(is_known, what="it is known which gpus there are")
        return found.capacity

    def _nvidia_smi(self, path: Path, lines: str) -> None:
        path.mkdir(exist_ok=True)
        program = path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 9\necho x >> {path}/calls\n{lines}')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def test_nvidia_smi_is_asked_once(self, store: JobStore, tmp_path: Path) -> None:
        (tmp_path / "listed").write_text(LISTED)
        self._nvidia_smi(tmp_path / "bin", f"/bin/cat {tmp_path}/listed\n")
        assert self._found(store, tmp_path / "bin").free_gpus == tuple(IDS)
        assert (tmp_path / "bin/calls").read_text() == "x\n"

    @pytest.mark.parametrize("lines", ["exit 1\n", "exec /bin/sleep 1000\n"])
    def test_where_it_fails_or_hangs_the_files_of_devices_count(
        self, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
    ) -> None:
        devices = tmp_path / "dev"
        devices.mkdir()
        for name in ("nvidia1", "nvidia0", "nvidia10", "nvidiactl", "nvidia-uvm"):
            (devices / name).touch()
        monkeypatch.setattr(gpus, "_DEVICES", devices)
        monkeypatch.setattr(gpus, "_SECONDS", 0.2)
        self._nvidia_smi(tmp_path / "bin", lines)
        assert self._found(store, tmp_path / "bin").free_gpus == ("0", "1", "10")

    def test_without_nvidia_those_that_rocm_can_use_count(
        self, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, gpu_id in enumerate((0, 4711, 4712)):
            (tmp_path / f"nodes/{number}").mkdir(parents=True)
            (tmp_path / f"nodes/{number}/gpu_id").write_text(f"{gpu_id}\n")
        monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
        monkeypatch.setattr(gpus, "_ROCM_NODES", tmp_path / "nodes")
        assert self._found(store, tmp_path / "none").free_gpus == ("0", "1")

    def test_a_machine_without_any_has_none(
        self, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
        monkeypatch.setattr(gpus, "_ROCM_NODES", tmp_path / "nodes")
        assert self._found(store, tmp_path / "none").why_never(Amounts(gpus=1)) == (
            "it needs 1 gpus; this machine has 0 for local tasks"
        )


class TestHoldings:
    @pytest.fixture(autouse=True)
    def _job(self, store: JobStore) -> None:
        store.submit("j", [{"id": "a", "bash": "true"}, {"id": "b", "bash": "true"}])
        store.paths("j").runs.mkdir(exist_ok=True)

    def _holdings(self, store: JobStore, gpus: Sequence[str] = ("0", "1", "2")) -> Holdings:
        return holdings_of(store, {}, Children(), cpus=2, memory=GIB, gpus=gpus)

    def test_the_handle_is_there_before_the_task_begins_and_names_the_gpus(self, store: JobStore) -> None:
        found, one = self._holdings(store), attempt()
        started_at = utc_now()
        found.take(one, needing(cpus=0.5, gpus=2), started_at)
        handle = json.loads(store.paths("j").handle("a", 1, "local").read_text())
        assert handle == {"starts": [started_at.isoformat()], "cpus": 500, "memory": 0, "gpus": ["0", "1"]}
        names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "AIR_EXECUTOR_GPUS")
        assert found.variables(one) == dict.fromkeys(names, "0,1")

    def test_who_asks_for_no_gpu_keeps_the_environment_as_it_is(self, store: JobStore) -> None:
        found, one = self._holdings(store), attempt()
        found.take(one, needing(cpus=1, gpus=0), utc_now())
        assert found.variables(one) == {}

    def test_what_never_is_there_is_refused_and_what_is_not_free_waits(self, store: JobStore) -> None:
        found = self._holdings(store)
        with pytest.raises(SpawnError, match="it needs 4 gpus; this machine has 3 for local tasks"):
            found.take(attempt(), needing(gpus=4), utc_now())
        assert found.needs(needing(gpus=4)) is None, "it need not wait to hear that"
        found.take(attempt(), needing(gpus=2), utc_now())
        with pytest.raises(ResourceExhaustedError, match="waits for 2 gpus"):
            found.take(attempt("b"), needing(gpus=2), utc_now())

    def test_what_was_not_started_holds_nothing_and_leaves_no_handle(self, store: JobStore) -> None:
        found, one = self._holdings(store), attempt()
        found.take(one, needing(gpus=3), utc_now())
        found.withdraw(one)
        assert found.capacity.free == found.capacity.total
        assert not list(store.paths("j").runs.iterdir())

    def test_a_handle_that_cannot_be_written_gives_everything_back(self, store: JobStore) -> None:
        found = self._holdings(store)
        store.paths("j").runs.rmdir()
        with pytest.raises(FileNotFoundError):
            found.take(attempt(), needing(gpus=3), utc_now())
        assert found.capacity.free == found.capacity.total

    def test_the_next_manager_reckons_with_what_runs(self, store: JobStore) -> None:
        started_at = utc_now()
        self._holdings(store).take(attempt(), needing(cpus=1, memory=1000, gpus=2), started_at)
        found, one = self._holdings(store), attempt()
        found.adopt(one, Running(one, started_at))
        found.adopt(one, Running(one, started_at))
        assert found.capacity.free == Amounts(1000, GIB - 1000, 1)
        assert found.capacity.free_gpus == ("2",)

    def test_not_with_what_has_ended(self, store: JobStore) -> None:
        self._holdings(store).take(attempt(), needing(gpus=2), utc_now())
        found, one = self._holdings(store), attempt()
        found.adopt(one, Ended(one, 0, utc_now()))
        assert found.capacity.free == found.capacity.total

    def test_nor_with_the_handle_of_an_earlier_attempt_of_the_same_number(self, store: JobStore) -> None:
        self._holdings(store).take(attempt(), needing(gpus=2), utc_now())
        time.sleep(0.001)
        found, one = self._holdings(store), attempt()
        found.adopt(one, Running(one, utc_now()))
        assert found.capacity.free == found.capacity.total

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"starts": [], "cpus": -1, "memory": 0, "gpus": []}', '{"gpus": 1}', "[" * 50_000]
    )
    def test_nor_with_a_handle_that_a_task_has_spoilt(self, store: JobStore, text: str) -> None:
        store.paths("j").handle("a", 1, "local").write_text(text)
        found, one = self._holdings(store), attempt()
        found.adopt(one, None)
        assert (found.pledged, found.capacity.free) == ([], found.capacity.total)

    def test_what_may_have_begun_gets_the_same_again(self, store: JobStore) -> None:
        """Whichever of the two processes makes the record, its ids are the ones that it is known to have."""
        first_start, second_start = utc_now(), utc_now()
        before = self._holdings(store)
        before.take(attempt("b"), needing(gpus=1), first_start)
        before.take(attempt("a"), needing(gpus=2), first_start)
        found, one = self._holdings(store), attempt("a")
        found.adopt(one, None)
        assert found.capacity.free_gpus == ("0",), "nobody else gets them meanwhile"
        assert [each.task_id for each in found.pledged] == ["a"]
        again = attempt("a")
        found.take(again, needing(gpus=2), second_start)
        assert (found.pledged, found.variables(again)["AIR_EXECUTOR_GPUS"]) == ([], "1,2")
        for start in (first_start, second_start):
            third, one = self._holdings(store), attempt("a")
            third.adopt(one, Running(one, start))
            assert third.capacity.free_gpus == ("0",)

    def test_a_pledge_that_is_not_needed_is_dropped(self, store: JobStore) -> None:
        self._holdings(store).take(attempt(), needing(gpus=2), utc_now())
        found, one = self._holdings(store), attempt()
        found.adopt(one, None)
        found.drop_pledge(one)
        assert (found.pledged, found.capacity.free) == ([], found.capacity.total)
