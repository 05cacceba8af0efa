"""Which task may start, and how a job has ended."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, TaskStatus, parse_tasks
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.schedule import TaskGraph, outcome, resetting_failed

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


def test_tasks_become_ready_in_the_order_of_the_list() -> None:
    graph = graph_over(graph_of(d="a b", b="", a="", c="a"))
    assert drain(graph) == ["b", "a"]
    finish(graph.completing("a"))
    assert drain(graph) == ["c"]
    finish(graph.completing("b"))
    assert drain(graph) == ["d"]


def test_what_has_completed_before_counts() -> None:
    a, b, c = graph_of(a="", b="a", c="b")
    assert drain(graph_over([a.evolve(**DONE), b, c])) == ["b"]
    assert drain(graph_over([a.evolve(**DONE), b.evolve(status=TaskStatus.RUNNING), c])) == []


def test_a_dependency_named_twice_counts_once() -> None:
    graph = graph_over(graph_of(a="", b="a a"))
    drain(graph)
    finish(graph.completing("a"))
    assert drain(graph) == ["b"]


def test_a_task_is_ready_once_however_often_it_is_said() -> None:
    graph = graph_over(graph_of(a=""))
    graph.add_ready("a")
    assert drain(graph) == ["a"]


def test_descendants_are_found_through_others() -> None:
    assert set(graph_over(graph_of(a="", b="a", c="b", d="")).descendants("a")) == {"b", "c"}


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
        finish(graph.completing(name))
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
    kept, reset = finish(resetting_failed(tasks))
    assert kept.status is TaskStatus.COMPLETED
    assert (reset.status, reset.attempt, reset.attempts_before, reset.error, reset.exit_code) == (
        "pending",
        3,
        3,
        None,
        None,
    )
