"""The DAG files of ``executor.py``: one file for each DAG, since a task parses its whole file."""

from __future__ import annotations

from pathlib import Path

# What each task does first, and the DAG at the end. Both are the same for all, so that only the imports and the work of
# a task differ.
_BEGIN = """\
import datetime, itertools, os, time
{imports}
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG


def tell_time(task_id):
    line = f"{{task_id}} {{time.time()}}\\n"
    file = os.open({marks!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, line.encode())
    os.close(file)


def wait(task_id):
    while not os.path.exists({go!r}):
        time.sleep(0.5)

"""
_END = """

def work(task_id):
    for step in ({steps}):
        step(task_id)


with DAG(
    {dag_id!r},
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    max_active_tasks=100_000,
    default_args={{"retries": 0}},
):
    names = [f"t{{number}}" for number in range({number})]
    tasks = [{operator} for name in names]
    if {is_chain}:
        for before, after in itertools.pairwise(tasks):
            before >> after
"""
_PYTHON = "PythonOperator(task_id=name, python_callable=work, op_args=[name])"
_BASH = 'BashOperator(task_id=name, bash_command="true")'
# The work is little, as it is in many a real task: it takes some ten milliseconds, and the imports take half a second.
_PANDAS = '''
def group(task_id):
    """Some thousand rows with pandas."""
    frame = pandas.DataFrame({"key": [number % 50 for number in range(5000)], "value": range(5000)})
    sums = frame.groupby("key")["value"].sum()
    assert len(sums) == 50 and sums.sum() == 12_497_500


def select(task_id):
    """A table in memory with SQLAlchemy."""
    numbers = sqlalchemy.Table("numbers", sqlalchemy.MetaData(), sqlalchemy.Column("value", sqlalchemy.Integer))
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        numbers.metadata.create_all(connection)
        connection.execute(numbers.insert(), [{"value": number} for number in range(200)])
        found = connection.execute(sqlalchemy.select(sqlalchemy.func.sum(numbers.c.value)).where(numbers.c.value > 100))
        assert found.scalar_one() == 14_850
    engine.dispose()
'''
_IMPORTS = "\nimport pandas\nimport requests\nimport sqlalchemy\n"

EMPTY, BASH, CHAIN, PANDAS = "empty_python", "true_bash", "chain", "pandas_sql"
WAITING, WAITING_PANDAS = "waiting", "waiting_pandas"


def write_dag(directory: Path, dag_id: str, number: int, marks: Path, go: Path) -> None:
    """Write a DAG file.

    :param number: of its tasks.
    :param marks: the file to which a task of Python adds a line with its name and the time when it begins.
    :param go: the file that those wait for which are to wait.
    """
    has_pandas = dag_id in (PANDAS, WAITING_PANDAS)
    steps = ["tell_time", *(["group", "select"] if has_pandas else [])]
    if dag_id in (WAITING, WAITING_PANDAS):
        steps.append("wait")
    text = _BEGIN.format(imports=_IMPORTS if has_pandas else "", marks=str(marks), go=str(go))
    if has_pandas:
        text += _PANDAS
    text += _END.format(
        steps="".join(f"{step}, " for step in steps),
        dag_id=dag_id,
        number=number,
        operator=_BASH if dag_id == BASH else _PYTHON,
        is_chain=dag_id == CHAIN,
    )
    (directory / f"{dag_id}.py").write_text(text)
