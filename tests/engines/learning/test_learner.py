"""What the manager does with reports and trials; no process is started here."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.local.learning import ledger
from airflow_provider_air_executor.engines.local.learning.learner import Learner
from airflow_provider_air_executor.engines.local.learning.trial import TOO_LONG, Outcome, Trial
from tests.engines.learning.reports import report

DAY = 86400.0
MB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The stamps of packages."""
    stamps: dict[str, str] = {}
    monkeypatch.setattr(ledger, "_has_file", lambda root, within: not root.startswith("bogus"))
    monkeypatch.setattr(ledger, "stamp", lambda root, within: stamps.get(root, "1"))
    return stamps


@pytest.fixture
def learner(tmp_path: Path, clock: Clock) -> Learner:
    return Learner(tmp_path, memory_cap=100 * MB, clock=clock)


def again(learner: Learner, data: bytes, times: int = 3) -> None:
    for _ in range(times):
        learner.take(data)


def passes(learner: Learner, **more: Outcome) -> list[Trial]:
    """Make all trials that are to be made; all pass but for those that have another outcome here."""
    trials = []
    while trial := learner.next_trial():
        trials.append(trial)
        learner.tried(trial, more.get(trial.root) or Outcome(0.1, 10 * MB, names=(trial.root,)))
        assert len(trials) < 100
    return trials


def test_a_package_is_imported_ahead_once_three_tasks_have_imported_it_and_it_has_passed(learner: Learner) -> None:
    assert (learner.next_trial(), learner.modules()) == (None, ())
    again(learner, report(numpy=["numpy", "numpy.fft"]), 2)
    assert learner.next_trial() is None
    again(learner, report(numpy=["numpy", "numpy.fft"]), 1)
    assert learner.next_trial() == Trial("numpy", ("numpy", "numpy.fft"))
    assert learner.modules() == ()
    learner.tried(Trial("numpy", ("numpy", "numpy.fft")), Outcome(0.1, MB, names=("numpy", "numpy.fft")))
    assert learner.next_trial() is None
    assert learner.modules() == ("numpy", "numpy.fft")


def test_what_others_need_is_tried_first_and_imported_before_them(learner: Learner) -> None:
    again(learner, report(pandas=["pandas"], six=["six"], numpy=["numpy"]))
    pandas = Outcome(0.2, 20 * MB, names=("pandas",), needs=("numpy", "six"))
    trials = passes(learner, pandas=pandas, six=Outcome(0.001, MB, names=("six",)))
    assert [trial.root for trial in trials] == ["pandas", "six", "numpy", "pandas"]
    assert trials[-1].after == ("numpy", "six")
    assert learner.modules() == ("numpy", "pandas")


def test_a_package_is_refused_with_what_it_needs(learner: Learner, caplog: pytest.LogCaptureFixture) -> None:
    again(learner, report(client=["client"], threads=["threads"]))
    with caplog.at_level("INFO"):
        passes(
            learner,
            threads=Outcome(0.2, MB, why_not="it starts a thread"),
            client=Outcome(0.2, MB, why_not="it starts a thread", names=("client",), needs=("threads",)),
        )
    assert learner.modules() == ()
    assert {one["name"]: one["why"] for one in learner.describe()["refused"]} == {
        "threads": "it starts a thread",
        "client": "it imports threads: it starts a thread",
    }
    assert sum("threads is not imported ahead" in line for line in caplog.messages) == 1
    again(learner, report(client=["client"], threads=["threads"]))
    assert learner.next_trial() is None  # it is remembered


def test_a_module_that_spoils_a_package_is_left_out(learner: Learner) -> None:
    again(learner, report(a=["a", "a.bad"]))
    trial = learner.next_trial()
    assert trial == Trial("a", ("a", "a.bad"))
    learner.tried(trial, Outcome(why_not="importing a.bad raises ValueError"))
    trial = learner.next_trial()
    assert trial == Trial("a", ("a",))
    learner.tried(trial, Outcome(0.1, MB, names=("a",)))
    again(learner, report(a=["a", "a.bad"]))
    assert (learner.next_trial(), learner.modules()) == (None, ("a",))


def test_only_the_module_that_cannot_be_imported_is_left_out(learner: Learner) -> None:
    again(learner, report(a=["a", "a.b", "a.bad", "a.c"]))
    trial = learner.next_trial()
    assert trial is not None
    learner.tried(trial, Outcome(why_not="importing a.bad raises ValueError", names=("a", "a.bad")))
    assert learner.next_trial() == Trial("a", ("a", "a.b", "a.c"))


def test_what_fails_in_a_generation_is_not_imported_ahead_any_more(learner: Learner) -> None:
    again(learner, report(a=["a", "a.b"], b=["b"]))
    passes(learner, a=Outcome(0.1, MB, names=("a", "a.b")))
    assert learner.modules() == ("a", "a.b", "b")
    learner.failed("a.b", "it starts a thread")
    assert learner.modules() == ("a", "b")
    learner.failed("b", "it starts\na thread")
    learner.failed("unknown", "it starts a thread")
    assert (learner.modules(), learner.next_trial()) == (("a",), None)
    assert [(one["name"], one["why"]) for one in learner.describe()["refused"]] == [("b", "it starts a thread")]


def test_modules_of_a_package_that_was_imported_before_are_no_needs_of_their_own(learner: Learner) -> None:
    again(learner, report(numpy=["numpy"], pandas=["pandas"]))
    pandas = Outcome(0.1, MB, names=("pandas",), needs=("numpy.ma", "zipfile", "unknown"))
    assert [trial.root for trial in passes(learner, pandas=pandas)] == ["numpy", "pandas", "pandas"]
    assert learner.modules() == ("numpy", "pandas")


def test_packages_that_need_each_other_or_a_refused_one(learner: Learner) -> None:
    again(learner, report(no=["no"], a=["a"], b=["b"], c=["c"]))
    trials = passes(
        learner,
        no=Outcome(why_not="it starts a thread"),
        a=Outcome(0.1, MB, names=("a",), needs=("b",)),
        b=Outcome(0.1, MB, names=("b",), needs=("a", "no")),
        c=Outcome(0.1, MB, names=("c",), needs=("a", "b")),
    )
    assert len(trials) < 10
    assert learner.modules() == ("a",)  # whose trial has shown no harm
    assert [one["name"] for one in learner.describe()["refused"]] == ["b", "c", "no"]


def test_modules_that_come_with_python_are_tried_last(learner: Learner) -> None:
    again(learner, report(asyncio=["asyncio"], a=["a"], unittest__mock=["unittest.mock"], pyarrow=["pyarrow.flight"]))
    trials = passes(learner, a=Outcome(0.1, MB, names=("a",), needs=("asyncio",)))
    assert [trial.root for trial in trials] == ["a", "pyarrow", "asyncio", "unittest.mock"]
    assert trials[1].names == ("pyarrow",)  # its other module is known not to survive a fork


def test_a_module_that_is_imported_later_is_tried_in_addition(learner: Learner) -> None:
    again(learner, report(a=["a"]))
    passes(learner)
    again(learner, report(a__later=["a.later"], base=False))  # the package itself has been imported ahead
    trial = learner.next_trial()
    assert trial == Trial("a", ("a", "a.later"))
    learner.tried(trial, Outcome(why_not="it opens a socket"))
    assert (learner.next_trial(), learner.modules()) == (None, ("a",))


def test_a_trial_that_took_too_long_is_made_again_a_few_times(learner: Learner, clock: Clock) -> None:
    tries = 0
    for _ in range(10):
        again(learner, report(slow=["slow"]))
        tries += len(passes(learner, slow=Outcome(why_not=TOO_LONG)))
        clock.now += 1.1 * DAY
    assert tries == 3


def test_what_is_not_used_any_more_is_not_imported_any_more(learner: Learner, clock: Clock) -> None:
    again(learner, report(a=["a"]))
    passes(learner)
    clock.now += DAY
    assert learner.modules() == ("a",)
    clock.now += 2 * DAY
    assert learner.modules() == ()
    learner.take(report(a=["a"]))
    clock.now += 2
    assert learner.modules() == ("a",)  # at once: it has been tried


def test_memory_is_bounded_and_measured(learner: Learner, clock: Clock) -> None:
    roots = {f"p{number}": [f"p{number}"] for number in range(15)}
    again(learner, report(**roots))
    passes(learner)
    assert len(learner.modules()) == 10
    learner.imported(1.0, 200 * MB)  # twice what the trials have said
    assert len(learner.modules()) == 5
    assert learner.describe()["imported"] == {"seconds": 1.0, "mb": 200.0}


def test_which_tasks_go_to_the_base(learner: Learner, clock: Clock) -> None:
    assert learner.goes_to_base(None)
    assert learner.goes_to_base("dags/a.py")  # nothing is known of it
    learner.take(report("dags/a.py"))
    learner.take(report("dags/b.py", changed=("OMP_NUM_THREADS",)))
    assert not learner.goes_to_base("dags/a.py")
    assert learner.goes_to_base("dags/b.py")
    clock.now += 1.1 * DAY
    learner.take(report("dags/b.py"))
    assert not learner.goes_to_base("dags/b.py")  # it does not do so any more
    assert learner.goes_to_base("dags/a.py")  # once a day
    assert not learner.goes_to_base("dags/a.py")
    clock.now += 61
    assert learner.goes_to_base("dags/a.py")  # that one has not reported
    learner.take(report("dags/a.py", base=False, changed=("A",)))
    assert learner.goes_to_base("dags/a.py")


def test_variables_that_packages_change_do_not_count_as_changed_by_a_file(learner: Learner) -> None:
    again(learner, report(sklearn=["sklearn"], changed=("KMP_INIT",)))
    assert learner.goes_to_base("dags/a.py")
    passes(learner, sklearn=Outcome(0.5, MB, "it changes the environment", ("sklearn",), (), ("KMP_INIT",)))
    assert not learner.goes_to_base("dags/a.py")
    learner.take(report(sklearn=["sklearn"], changed=("KMP_INIT", "OTHER")))
    assert learner.goes_to_base("dags/a.py")
    assert learner.describe()["files"][0]["changes"] == ["OTHER"]


def test_it_is_kept_and_an_upgrade_begins_anew(
    learner: Learner, clock: Clock, tmp_path: Path, everything_is_installed: dict[str, str]
) -> None:
    again(learner, report(a=["a"], b=["b"]))
    passes(learner, b=Outcome(why_not="it starts a thread"))
    learner.write(now=True)
    path = tmp_path / "preload.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = Learner(tmp_path, clock=clock)
    assert (second.modules(), second.next_trial()) == (("a",), None)
    assert second.describe()["refused"] == learner.describe()["refused"]
    assert not second.goes_to_base("dags/a.py")
    everything_is_installed["b"] = "2"
    second.recheck()
    assert second.next_trial() == Trial("b", ("b",))
    assert second.modules() == ("a",)
    everything_is_installed["a"] = "2"
    third = Learner(tmp_path, clock=clock)
    assert third.modules() == ()
    assert {trial.root for trial in passes(third)} == {"a", "b"}


def test_another_python_tries_everything_again(
    learner: Learner, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(learner, report(a=["a"]))
    passes(learner)
    learner.write(now=True)
    monkeypatch.setattr(ledger, "_python", lambda: "another")
    assert Learner(tmp_path, clock=clock).next_trial() == Trial("a", ("a",))


def test_it_is_written_from_time_to_time(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "preload.json"
    learner.write(now=True)
    assert not path.exists()  # there is nothing
    learner.take(report(a=["a"]))
    learner.write()
    first = path.read_bytes()
    learner.take(report(a=["a"]))
    learner.write()
    assert path.read_bytes() == first
    learner.write(now=True)
    assert path.read_bytes() != first


def test_a_full_disk_is_no_fault(learner: Learner, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learner.take(report(a=["a"]))
    (tmp_path / "preload.json").mkdir()
    learner.write(now=True)
    assert "cannot be written" in caplog.text


def test_times_are_said_as_elsewhere_whatever_the_file_has(learner: Learner, tmp_path: Path, clock: Clock) -> None:
    again(learner, report(good=["good"], bad=["bad"]))
    passes(learner, bad=Outcome(0.1, MB, why_not="it starts a thread"))
    assert learner.describe()["modules"][0]["since"] == "2001-09-09T01:46:40+00:00"
    assert learner.describe()["refused"][0]["since"] == "2001-09-09T01:46:40+00:00"
    learner.write(now=True)
    path = tmp_path / "preload.json"
    path.write_text(path.read_text().replace('"at":1000000000.0', '"at":1e12'))
    assert Learner(tmp_path, clock=clock).describe()["refused"][0]["since"] > "9000"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"{}", b'{"version": 1}', b'{"version": 1, "files": [], "packages": [], "python": ""}',
        b'{"version": 1, "python": "", "files": {"a": {}}, "packages": {}}',
        b'{"version": 1, "python": "", "files": {}, "packages": {"a": {"seen": 3, "names": ["a"]}}}',
        b'{"version": 1, "python": "", "files": {}, "packages": {"a": 1}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_begun_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "preload.json").write_bytes(content)
    learner = Learner(tmp_path)
    assert caplog.text.count("is learned anew") == 1
    again(learner, report(a=["a"]))
    assert learner.next_trial() == Trial("a", ("a",))
    learner.write(now=True)
    assert json.loads((tmp_path / "preload.json").read_bytes())["version"] == 1


def test_a_file_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "preload.json").write_text('{"version": 99}')
    assert Learner(tmp_path).modules() == ()


def test_a_symlink_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other").write_text("{}")
    (tmp_path / "preload.json").symlink_to(tmp_path / "other")
    learner = Learner(tmp_path)
    assert "is learned anew" in caplog.text
    learner.take(report(a=["a"]))
    learner.write(now=True)
    assert (tmp_path / "other").read_text() == "{}"


def test_it_stays_small_whatever_is_reported(learner: Learner, tmp_path: Path, clock: Clock) -> None:
    for number in range(1500):
        names = [f"r{number % 700}.{'m' * 60}{one}" for one in range(100)]
        more = {f"r{number % 700}": names, f"bogus{number}": [f"bogus{number}"]}
        learner.take(report(f"{'d' * 400}/{number}.py", **more))
    learner.take(b"no report")
    learner.write(now=True)
    assert (tmp_path / "preload.json").stat().st_size <= ledger.MAX_BYTES
    second = Learner(tmp_path, clock=clock)
    assert 100 < len(second.describe()["files"]) <= ledger.MAX_FILES
    assert not [root for root in second._ledger.packages if root.startswith("bogus")]
    assert len(second._ledger.packages) == ledger.MAX_PACKAGES
