"""``@task.air_executor``: a Python function that returns the tasks of a job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, determine_kwargs, task_decorator_factory
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION
from airflow.sdk.definitions.context import context_merge

from airflow_provider_air_executor import task_files, task_templates
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator


class AirExecutorDecoratedOperator(DecoratedOperator, AirExecutorSubmitOperator):
    """Calls a function in the worker, and submits the tasks that it returns as a job.

    :param python_callable: the function; it returns what :class:`AirExecutorSubmitOperator` takes as ``tasks``, and
        templates in it are rendered. Each try calls it again; its list counts where a new job is submitted.
    :param op_args: the positional arguments of the call (templated); default: none.
    :param op_kwargs: the keyword arguments of the call (templated); default: none.
    :param kwargs: those of :class:`AirExecutorSubmitOperator`.
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *AirExecutorSubmitOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **AirExecutorSubmitOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.air_executor"
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, tasks=SET_DURING_EXECUTION, **kwargs
        )

    def execute(self, context: Context) -> Any:
        """Call the function, and submit its tasks."""
        context_merge(context, self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        with task_templates.naming(self):
            returned = _tasks_in(self.python_callable(*self.op_args, **arguments), self.python_callable.__name__)
        self.tasks = task_templates.plain(returned)
        self.tasks = self.render_template(self.tasks, context)
        return AirExecutorSubmitOperator.execute(self, context)


def _tasks_in(returned: Any, function: str) -> Any:
    """The tasks that a function has returned.

    :raises InvalidJobError: if they are no list, nor the name of a file with one.
    """
    if isinstance(returned, str) and not returned.lstrip().startswith("[") and not task_files.is_job(returned):
        raise InvalidJobError(f"{function}() must return a list of tasks, not a text: return [{returned[:80]!r}]")
    if returned is None:
        raise InvalidJobError(f"{function}() must return a list of tasks, and returned None; is there no return?")
    if isinstance(returned, str) or (isinstance(returned, Mapping) and "tasks" in returned):
        return returned
    if isinstance(returned, Mapping | Task | bytes) or not isinstance(returned, Iterable):
        kind = type(returned).__name__
        raise InvalidJobError(f"{function}() must return a list of tasks, not {kind}; one task goes into a list too")
    return list(returned)


def air_executor_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function: ``@task.air_executor`` or ``@task.air_executor(deferrable=True)``.

    :param python_callable: the function.
    :param kwargs: those of :class:`AirExecutorSubmitOperator`, without ``tasks``.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=AirExecutorDecoratedOperator, **kwargs
    )
