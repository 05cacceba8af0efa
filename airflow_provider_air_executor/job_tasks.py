"""The tasks of an operator's job: given in the DAG, in files beside it, or by other Airflow tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_air_executor import arguments, task_files, task_templates
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

OnEmpty = Literal["skip", "fail", "succeed"]


class NothingToRunError(Exception):
    """The list of tasks is empty, and the Airflow task is to succeed then."""


class JobTasksOperator(BaseOperator):
    """An operator with the tasks of a job. Its parameters are described in the operators that users see.

    Airflow's own ``template_ext`` would read each text that ends like the name of a file, arguments as well. Here only
    those are read that can be scripts or jobs, see :mod:`.task_files`.
    """

    template_fields: Sequence[str] = ("tasks", "env", "cwd")

    def __init__(
        self,
        *,
        tasks: Any,
        env: Any = None,
        cwd: Any = None,
        append_env: Any = None,
        on_empty: OnEmpty = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tasks = task_templates.plain(tasks)
        self.env = task_templates.plain(env)
        self.cwd = task_templates.plain(cwd)
        self.append_env = append_env
        self.on_empty = on_empty
        with task_templates.naming(self):
            arguments.word("on_empty", on_empty, get_args(OnEmpty))
            task_templates.check_defaults(self._defaults)
        self._check_tasks()

    @property
    def _defaults(self) -> dict[str, Any]:
        """The fields of all tasks that do not have their own."""
        given = {"env": self.env, "cwd": self.cwd, "append_env": self.append_env}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def _job_file(self) -> Mapping[str, Any]:
        """What a file with a whole job says of the job, besides its tasks."""
        if not isinstance(self.tasks, Mapping):
            return {}
        return {name: value for name, value in self.tasks.items() if name not in ("tasks", "name")}

    @property
    def _listed(self) -> Any:
        """The list of tasks, as far as it is known now."""
        is_job = isinstance(self.tasks, Mapping) and "tasks" in self.tasks
        return self.tasks["tasks"] if is_job else self.tasks

    def _check_tasks(self) -> None:
        if task_files.is_job(self.tasks) or (self.on_empty != "fail" and self.tasks == []):
            return
        with task_templates.naming(self, self._listed):
            task_templates.check(self._listed)
            arguments.job_spec({"outlets": ()}, self._job_file)

    def resolve_template_files(self) -> None:
        """Called by Airflow when the DAG has been parsed: let contents stand for the names of files.

        :raises InvalidJobError: if there is no such file, or it is not valid.
        """
        with task_templates.naming(self):
            found = self._with_files(self.tasks)
        if found is not self.tasks:
            self.tasks = found
            self._check_tasks()
        self.prepare_template()

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render templates, also in files that a task names which was not there when the DAG was parsed."""
        if content is self.tasks:
            with task_templates.naming(self):
                content = self._with_files(content)
                if task_files.is_job(content):
                    return self._with_files(content, context)
        return super().render_template(content, context, jinja_env, seen_oids)

    def _with_files(self, tasks: Any, context: Context | None = None) -> Any:
        """The tasks without names of files; the same object if there is none.

        :param context: what files are rendered with; without it the name of a job stays that must be rendered first.
        """
        environment = cache(self.get_template_env)  # it takes a while to make one

        def read(name: str) -> str:
            return task_files.read(environment(), name, context)

        if task_files.is_job(tasks):
            text = read(tasks)
            if context is None and task_files.is_rendered_first(text):
                return tasks
            tasks = task_files.job_of(tasks, text)
        if isinstance(tasks, Mapping) and "tasks" in tasks:
            listed = task_files.with_scripts(tasks["tasks"], read)
            return tasks if listed is tasks["tasks"] else {**tasks, "tasks": listed}
        return task_files.with_scripts(tasks, read)

    def _tasks_to_submit(self) -> tuple[Task, ...]:
        """The tasks of a new job, rendered. It is not called if the job of an earlier try is reattached."""
        with task_templates.naming(self, self._listed):
            listed = task_templates.rendered(self._listed)
        if isinstance(listed, list) and not listed:
            self._nothing_to_run()
        with task_templates.naming(self, listed):
            return task_templates.to_submit(listed, self._defaults)

    def _nothing_to_run(self, why: str = "tasks: the list is empty; a job needs at least one task") -> NoReturn:
        """There is no task."""
        if self.on_empty == "skip":
            raise AirflowSkipException(why)
        if self.on_empty == "succeed":
            raise NothingToRunError(why)
        with task_templates.naming(self):
            raise InvalidJobError(f"{why}; on_empty='skip' would skip the Airflow task, 'succeed' lets it succeed")
