"""Which task may start, and how a job has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.jobs.models import JobState, Reason, RunIf, Task, TaskStatus, parse_tasks
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.schedule import Fate, TaskGraph, outcome, resetting

DONE = {"status": TaskStatus.COMPLETED}


def graph_of(**dependencies: str) -> tuple[Task, ...]:
    return parse_tasks(
        [{"id": name, "command": "x", "dependencies": after.split()} for name, after in dependencies.items()]
    )


def graph_over(tasks: Iterable[Task]) -> TaskGraph:
    """The graph of a job that has these tasks."""
    found = TaskGraph({task.id: task for task in tasks})
    for task in tasks:
        found.add(task)
    return found


def drain(graph: TaskGraph) -> list[str]:
    found = []
    while graph.has_ready:
        found.append(graph.take_ready())
    return found


def complete(graph: TaskGraph, task_id: str) -> dict[str, Fate]:
    """What becomes of those that wait for a task which completes."""
    tasks: dict[str, Task] = graph._tasks  # type: ignore[assignment]
    tasks[task_id] = tasks[task_id].evolve(**DONE)
    return dict(graph.ending(task_id))


def fail(graph: TaskGraph, task_id: str) -> dict[str, Fate]:
    """What becomes of those that wait for a task which fails."""
    tasks: dict[str, Task] = graph._tasks  # type: ignore[assignment]
    tasks[task_id] = tasks[task_id].evolve(status=TaskStatus.FAILED)
    return dict(graph.ending(task_id))


def test_tasks_become_ready_in_the_order_of_the_list() -> None:
    graph = graph_over(graph_of(d="a b", b="", a="", c="a"))
    assert drain(graph) == ["b", "a"]
    complete(graph, "a")
    assert drain(graph) == ["c"]
    complete(graph, "b")
    assert drain(graph) == ["d"]


def test_what_has_completed_before_counts() -> None:
    a, b, c = graph_of(a="", b="a", c="b")
    assert drain(graph_over([a.evolve(**DONE), b, c])) == ["b"]
    assert drain(graph_over([a.evolve(**DONE), b.evolve(status=TaskStatus.RUNNING), c])) == []


def test_a_dependency_named_twice_counts_once() -> None:
    graph = graph_over(graph_of(a="", b="a a"))
    drain(graph)
    complete(graph, "a")
    assert drain(graph) == ["b"]


def test_a_task_is_ready_once_however_often_it_is_said() -> None:
    graph = graph_over(graph_of(a=""))
    graph.add_ready("a")
    assert drain(graph) == ["a"]


@pytest.mark.parametrize(
    ("run_if", "completed", "failed"),
    [
        (None, Fate.STARTS, Fate.FAILS),
        (RunIf.ALL_DONE, Fate.STARTS, Fate.STARTS),
        (RunIf.ALWAYS, Fate.STARTS, Fate.STARTS),
        (RunIf.ANY_FAILED, Fate.IS_SKIPPED, Fate.STARTS),
    ],
)
def test_what_becomes_of_a_task_when_all_that_it_depends_on_have_ended(
    run_if: RunIf | None, completed: Fate, failed: Fate
) -> None:
    """The same whether they end before or after it is added."""
    a, b, c = graph_of(a="", b="", c="a b")
    c = c.evolve(run_if=run_if)
    for end, fate in ((complete, completed), (fail, failed)):
        graph = graph_over([a, b, c])
        assert complete(graph, "b") == {"c": Fate.WAITS}
        assert end(graph, "a") == {"c": fate}
        tasks = {**graph._tasks, "c": c}
        assert TaskGraph(tasks).add(c) is fate
        assert ("c" in drain(graph)) == (fate is Fate.STARTS)


def test_a_task_that_runs_in_any_case_waits_until_all_have_ended() -> None:
    a, b, c = graph_of(a="", b="", c="a b")
    graph = graph_over([a, b, c.evolve(run_if=RunIf.ALL_DONE)])
    assert drain(graph) == ["a", "b"]
    assert fail(graph, "b") == {"c": Fate.WAITS}
    assert complete(graph, "a") == {"c": Fate.STARTS}
    assert drain(graph) == ["c"]


@given(st.data())
def test_any_graph_is_run_in_an_order_that_respects_it(data: st.DataObject) -> None:
    names = [f"t{number}" for number in range(data.draw(st.integers(1, 12)))]
    tasks = parse_tasks(
        [
            {
                "id": name,
                "command": "x",
                "dependencies": data.draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else [],
            }
            for place, name in enumerate(names)
        ]
    )
    tasks = tuple(data.draw(st.permutations(tasks)))
    graph, done = graph_over(tasks), []
    while graph.has_ready:
        name = graph.take_ready()
        needed = next(task.dependencies for task in tasks if task.id == name)
        assert set(needed) <= set(done)
        done.append(name)
        complete(graph, name)
    assert sorted(done) == sorted(names)


def test_completed_only_if_every_task_has() -> None:
    a, b = graph_of(a="", b="")
    assert finish(outcome([a.evolve(**DONE), b.evolve(**DONE)])).state is JobState.COMPLETED
    assert finish(outcome([])).state is JobState.FAILED
    assert finish(outcome([a.evolve(**DONE), b])).state is JobState.FAILED


def test_the_cause_is_named_not_what_followed_from_it() -> None:
    a, b = graph_of(a="b", b="")
    failed = {"status": TaskStatus.FAILED}
    tasks = [a.evolve(**failed, reason=Reason.DEPENDENCY), b.evolve(**failed, reason=Reason.EXIT, error="exit code 3")]
    state, reason, error = finish(outcome(tasks))
    assert (state, reason) == (JobState.FAILED, Reason.EXIT)
    assert error == "task b: exit code 3; 1 more of 2 tasks did not complete"


def test_reset_keeps_what_is_done() -> None:
    a, b = graph_of(a="", b="a")
    tasks = [a.evolve(**DONE), b.evolve(status=TaskStatus.FAILED, attempt=3, error="x", exit_code=1)]
    kept, reset = finish(resetting(tasks))
    assert kept.status is TaskStatus.COMPLETED
    assert (reset.status, reset.attempt, reset.attempts_before, reset.error, reset.exit_code) == (
        "pending",
        3,
        3,
        None,
        None,
    )


def again(tasks: Sequence[Task], *chosen: str) -> str:
    """Those that run again."""
    found = finish(resetting(tasks, chosen or None))
    return " ".join(task.id for task in found if task.status is TaskStatus.PENDING)


def test_what_completed_because_others_ended_runs_again_with_them() -> None:
    """What cleans up after a task does so after its next run too, and a report that it failed may be wrong by then."""
    tasks = [
        task.evolve(**(DONE if task.id != "a" else {"status": TaskStatus.FAILED, "reason": Reason.EXIT}))
        for task in graph_of(a="", b="", clean="a b", tell="b", after="clean")
    ]
    tasks[2] = tasks[2].evolve(run_if=RunIf.ALWAYS)
    tasks[3] = tasks[3].evolve(run_if=RunIf.ANY_FAILED, reason=Reason.SKIPPED)
    assert again(tasks) == "a clean after"


def test_a_completed_task_whose_dependency_is_set_to_pending_by_hand_stays_completed() -> None:
    """In files of the existing system."""
    a, b = graph_of(a="", b="a")
    assert again([a, b.evolve(**DONE)]) == "a"


def test_chosen_tasks_run_again_with_those_that_failed_because_of_them() -> None:
    failed = {"status": TaskStatus.FAILED}
    because = {**failed, "reason": Reason.DEPENDENCY}
    a, b, c, d, e, clean = graph_of(a="", b="a", c="b", d="", e="a", clean="a")
    tasks = [
        a.evolve(**failed, reason=Reason.EXIT),
        b.evolve(**because),
        c.evolve(**because),
        d.evolve(**failed, reason=Reason.EXIT),
        e.evolve(**DONE),
        clean.evolve(**failed, reason=Reason.EXIT, run_if=RunIf.ALL_DONE),
    ]
    assert again(tasks, "a") == "a b c clean"
    assert again(tasks, "d") == "d"
    assert again(tasks, "e") == "e"
    assert again(tasks) == "a b c d clean"
