"""A DAG file is executed once under watch, to see whether what it makes may be shared by its later tasks."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.system.stamps import stamps

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tasks are forked on Linux only"),
]

# It has imported Airflow, and forks a process for each DAG file.
PROGRAM = """\
import json, os, sys
out = os.dup(1)
os.dup2(2, 1)  # Airflow logs to it
from airflow.dag_processing.dagbag import BundleDagBag
import airflow.sdk.execution_time.task_runner
import airflow.providers.standard.operators.bash, airflow.providers.standard.operators.python
import airflow.providers.standard.decorators.python
from airflow_provider_air_executor import parse_watch

def answer(file, bundle):
    def parse():
        bag = BundleDagBag(
            dag_folder=file, safe_mode=False, load_op_links=False, bundle_path=bundle, bundle_name="bundle"
        )
        said.update(dags=sorted(bag.dags), errors=bag.import_errors)
        return bag

    said = {}
    seen = parse_watch.watch(parse, bundle)
    return {"why_not": seen.why_not, "files": seen.files, **said}

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            said = answer(*json.loads(line))
        except BaseException as error:
            said = {"failed": repr(error)}
        os.write(out, json.dumps(said).encode() + b"\\n")
        os._exit(0)
    os.waitpid(pid, 0)
"""

Watch = Callable[[dict[str, str]], dict[str, Any]]


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_VAR_TABLE": "sales",
        "AIRFLOW_CONN_STORE": "http://localhost",
        "ENV": "test",
    }
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def watch(watcher: subprocess.Popen[str], tmp_path: Path) -> Watch:
    def run(files: dict[str, str]) -> dict[str, Any]:
        """Watch dag.py of a bundle with these files."""
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("BUNDLE", str(tmp_path)))
        watcher.stdin.write(json.dumps([str(tmp_path / "dag.py"), str(tmp_path)]) + "\n")
        watcher.stdin.flush()
        said: dict[str, Any] = json.loads(watcher.stdout.readline())
        assert "failed" not in said, said
        return said

    return run


BEGIN = """\
import json, os
from datetime import datetime, timedelta
from pathlib import Path
from airflow.sdk import DAG, Asset, Param, TaskGroup, XComArg, asset, chain, dag, setup, task, task_group, teardown
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import PythonOperator
"""
SIMPLE = """
with DAG("simple", schedule="@daily", start_date=datetime(2024, 1, 1), catchup=False):
    EmptyOperator(task_id="a") >> BashOperator(task_id="b", bash_command="echo {{ ds }}")
"""

# As users write them. What is not a name of a file is dag.py; it begins with BEGIN.
SHARED: dict[str, str | dict[str, str]] = {
    "classic": """
def work(**context):
    print(context["ds"], datetime.now(), os.getpid())

default_args = {"owner": "me", "retries": 2, "retry_delay": timedelta(minutes=5), "email_on_failure": False}
with DAG("classic", default_args=default_args, schedule="0 4 * * *", start_date=datetime(2024, 1, 1)) as d:
    first = PythonOperator(task_id="first", python_callable=work)
    second = [BashOperator(task_id=f"second_{n}", bash_command=f"echo {n} {{{{ ds }}}}") for n in range(5)]
    first >> second >> EmptyOperator(task_id="last", trigger_rule="none_failed_min_one_success")
""",
    "taskflow": """
@dag(schedule=None, start_date=datetime(2024, 1, 1), tags=["a"])
def flow():
    @task
    def extract() -> dict:
        return {"now": datetime.now().isoformat()}

    @task(multiple_outputs=True, retries=3)
    def transform(data: dict) -> dict:
        return data

    @task.bash
    def load(data) -> str:
        return f"echo {data}"

    @task.branch
    def choose():
        return "end"

    load(transform(extract())) >> choose() >> EmptyOperator(task_id="end")

flow()
""",
    "dynamic mapping": """
with DAG("mapped", schedule=None):
    @task
    def numbers():
        return [1, 2, 3]

    @task
    def add(x, y):
        return x + y

    added = add.partial(y=10).expand(x=numbers())
    BashOperator.partial(task_id="b").expand(bash_command=["echo 1", "echo 2"])
    PythonOperator.partial(task_id="p", python_callable=print).expand(op_args=added.map(lambda x: [x]))
""",
    "task groups": """
with DAG("groups", schedule=None):
    with TaskGroup("outer", tooltip="t") as outer:
        with TaskGroup("inner"):
            EmptyOperator(task_id="a")
        EmptyOperator(task_id="b")

    @task_group
    def group(n):
        @task
        def work(n):
            return n
        work(n)

    outer >> group(1)
    group.override(group_id="mapped").expand(n=[1, 2])
""",
    "yaml": {
        "dag.py": """
import yaml
with open(os.path.join(os.path.dirname(__file__), "config.yaml")) as file:
    config = yaml.safe_load(file)
for name in config["dags"]:
    with DAG(name, schedule=config["schedule"]) as made:
        EmptyOperator(task_id="a")
    globals()[name] = made
""",
        "config.yaml": "dags: [one, two]\nschedule: '@daily'\n",
    },
    "json": {
        "dag.py": "config = json.loads((Path(__file__).parent / 'config.json').read_text())\n" + SIMPLE,
        "config.json": "{}",
    },
    "glob": {
        "dag.py": """
import yaml
from glob import glob
for path in sorted(Path(__file__).resolve().parent.joinpath("configs").glob("*.yaml")):
    config = yaml.safe_load(path.read_text())
    with DAG(path.stem, schedule=config["schedule"]) as made:
        EmptyOperator(task_id="a")
    globals()[path.stem] = made
assert glob(f"{os.path.dirname(__file__)}/configs/*") and os.listdir(Path(__file__).parent)
""",
        "configs/one.yaml": "schedule: '@daily'\n",
        "configs/two.yaml": "schedule: null\n",
    },
    "walk": "assert list(os.walk(os.path.dirname(__file__)))\n" + SIMPLE,
    "helpers": {
        "dag.py": """
from common import settings
from common.operators import MyOperator
from helper import make
with DAG("helped", schedule=settings.SCHEDULE):
    MyOperator(task_id="a", table="t") >> make("b")
""",
        "common/__init__.py": "",
        "common/settings.py": "SCHEDULE = '@daily'\n",
        "common/operators.py": """
from __future__ import annotations
from airflow.sdk import BaseOperator

class MyOperator(BaseOperator):
    template_fields = ("table",)

    def __init__(self, *, table: str, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def execute(self, context):
        return self.table
""",
        "helper.py": """
from airflow.providers.standard.operators.bash import BashOperator

def make(name):
    return BashOperator(task_id=name, bash_command="true")
""",
    },
    "optional helper": "try:\n    import my_settings\nexcept ImportError:\n    my_settings = None\n" + SIMPLE,
    "pandas": "import pandas as pd\nframe = pd.DataFrame({'a': [1, 2]})\nassert frame.a.sum() == 3\n" + SIMPLE,
    "numpy": "import numpy as np\nassert np.arange(3).sum() == 3\n" + SIMPLE,
    "requests": "import requests\nsession = requests.Session()\n" + SIMPLE,
    "sqlalchemy": """
import sqlalchemy
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, select
from sqlalchemy.orm import declarative_base
table = Table("t", MetaData(), Column("a", Integer))
engine = create_engine("sqlite:////nowhere/db")
query = select(table.c.a)
"""
    + SIMPLE,
    "providers": {
        "sql/query.sql": "SELECT 1\n",
        "dag.py": """
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.providers.sqlite.hooks.sqlite import SqliteHook
from airflow.providers.smtp.operators.smtp import EmailOperator
from airflow.providers.ssh.operators.ssh import SSHOperator
from airflow.providers.postgres.hooks.postgres import PostgresHook
with DAG("providers", schedule=None, template_searchpath=["BUNDLE/sql"]):
    SQLExecuteQueryOperator(task_id="q", conn_id="store", sql="query.sql")
    SSHOperator(task_id="s", ssh_conn_id="ssh", command="true")
    SqliteHook(sqlite_conn_id="store")
""",
    },
    "pendulum": """
import pendulum
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable
zone = pendulum.timezone("Europe/Rome")
with DAG("a", schedule="0 3 * * *", start_date=pendulum.datetime(2024, 1, 1, tz="Europe/Rome"), catchup=False):
    EmptyOperator(task_id="a")
with DAG("b", schedule=CronDataIntervalTimetable("0 3 * * *", timezone=zone),
         start_date=datetime(2024, 1, 1, tzinfo=zone), end_date=pendulum.parse("2030-01-01")):
    EmptyOperator(task_id="a")
with DAG("c", schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC"), start_date=datetime(2024, 1, 1)):
    EmptyOperator(task_id="a")
""",
    "environment": """
ENV = os.environ.get("ENV", "dev")
OTHER = os.getenv("OTHER") or os.environ["ENV"]
HOME = Path(os.environ["AIRFLOW_HOME"])
assert "ENV" in os.environ and ENV == "test"
"""
    + SIMPLE,
    "loggers": """
import logging, structlog
log = logging.getLogger(__name__)
log.debug("nothing")
task_log = logging.getLogger("airflow.task")
other = structlog.get_logger()
"""
    + SIMPLE,
    "dataclasses": """
from __future__ import annotations
import enum
from collections import namedtuple
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict
from pydantic import BaseModel

@dataclass(frozen=True)
class Config:
    name: str
    tags: list[str] = field(default_factory=list)

class Kind(str, enum.Enum):
    A = "a"

class Row(NamedTuple):
    a: int

class Model(BaseModel):
    a: int = 1

Point = namedtuple("Point", "x y")
configs = [Config("a"), Config("b", ["x"])]
for config in configs:
    with DAG(config.name, schedule=None, tags=config.tags):
        EmptyOperator(task_id=f"a{Model().a}")
""",
    "params": """
with DAG("params", schedule=None, render_template_as_native_obj=True, params={
    "number": Param(5, type="integer", minimum=3, description="n"),
    "day": Param("2024-01-01", type="string", format="date"),
    "choice": Param("a", enum=["a", "b"]), "plain": 1,
}):
    BashOperator(task_id="a", bash_command="echo {{ params.number }}", env={"A": "{{ var.value.a }}"})
""",
    "assets": """
from airflow.sdk import AssetAlias, AssetAny, Metadata
one, two = Asset("s3://bucket/one", extra={"a": 1}), Asset(name="two", uri="file:///two")
with DAG("producer", schedule=None):
    @task(outlets=[one, AssetAlias("alias")])
    def make():
        yield Metadata(one, {})
    make()
with DAG("consumer", schedule=(one | two)):
    EmptyOperator(task_id="a", inlets=[one])
with DAG("all", schedule=[one, two]):
    EmptyOperator(task_id="a")
""",
    "@asset": """
@asset(schedule="@daily", uri="file:///x")
def first():
    return 1

@asset(schedule=first)
def second(first):
    return 2
""",
    "templates": {
        "dag.py": """
with DAG("docs", schedule=None, doc_md=(Path(__file__).parent / "README.md").read_text(),
         template_searchpath=[str(Path(__file__).parent / "sql")],
         user_defined_macros={"f": len}, user_defined_filters={"g": str}) as d:
    BashOperator(task_id="a", bash_command="script.sh", doc_md=__doc__)
d.doc_md = d.doc_md or __doc__
""",
        "README.md": "# It\n",
        "sql/script.sh": "echo {{ ds }}\n",
    },
    "doc_md of a file": {
        "dag.py": 'with DAG("docs", schedule=None, doc_md="README.md", dag_display_name="x"):\n'
        '    EmptyOperator(task_id="a")\n',
        "README.md": "# It\n",
    },
    "sensors": """
from airflow.providers.standard.sensors.date_time import DateTimeSensor
from airflow.providers.standard.sensors.external_task import ExternalTaskSensor
from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import PokeReturnValue
with DAG("sensors", schedule=timedelta(hours=1), start_date=datetime(2024, 1, 1)):
    FileSensor(task_id="f", filepath="/tmp/x", poke_interval=10, mode="reschedule", deferrable=True)
    ExternalTaskSensor(task_id="e", external_dag_id="simple", external_task_id="a")
    PythonSensor(task_id="p", python_callable=lambda: True)
    TimeDeltaSensor(task_id="t", delta=timedelta(minutes=1))
    DateTimeSensor(task_id="d", target_time="{{ data_interval_end }}")
    TriggerDagRunOperator(task_id="r", trigger_dag_id="simple")

    @task.sensor(poke_interval=1)
    def wait() -> PokeReturnValue:
        return PokeReturnValue(is_done=True)
    wait()
""",
    "setup and teardown": """
with DAG("cluster", schedule=None):
    @setup
    def create():
        return 1

    @teardown
    def delete(number):
        pass

    number = create()
    with delete(number):
        EmptyOperator(task_id="work")
    BashOperator(task_id="x", bash_command="true").as_setup() >> EmptyOperator(task_id="z").as_teardown()
""",
    "callbacks": """
from airflow.providers.smtp.notifications.smtp import SmtpNotifier

def failed(context):
    print("failed", context)

with DAG("callbacks", schedule=None, on_failure_callback=[failed], dagrun_timeout=timedelta(hours=1),
         default_args={"on_failure_callback": failed, "on_success_callback": SmtpNotifier(to="me")}):
    EmptyOperator(task_id="a", execution_timeout=timedelta(minutes=1), pool="p", priority_weight=2, queue="q")
""",
    "chains and labels": """
from airflow.sdk import Label, cross_downstream
from airflow.providers.standard.operators.python import BranchPythonOperator, ShortCircuitOperator
from airflow.providers.standard.operators.latest_only import LatestOnlyOperator
with DAG("chains", schedule="@once", start_date=datetime(2024, 1, 1), max_active_runs=1):
    a, b, c, e = (EmptyOperator(task_id=name) for name in "abce")
    a >> Label("yes") >> b
    chain(b, [c, e])
    BranchPythonOperator(task_id="br", python_callable=lambda: "a") >> a
    ShortCircuitOperator(task_id="s", python_callable=bool) >> LatestOnlyOperator(task_id="l")
""",
    "virtual environments": """
with DAG("venv", schedule=None):
    @task.virtualenv(requirements=["x==1"], system_site_packages=False)
    def work():
        pass

    @task.external_python(python="/usr/bin/python3")
    def other():
        pass
    work() >> other()
""",
    "a class of hooks": """
import functools, hashlib, itertools, operator, re, subprocess, socket, tempfile, random, time, uuid, threading
from airflow.sdk import BaseHook, Variable, Connection, get_current_context

class MyHook(BaseHook):
    conn_name_attr = "my_conn_id"

    def get_conn(self):
        return self.get_connection("store")

def work():
    hook, context = MyHook(), get_current_context()
    return Variable.get("x"), time.time(), uuid.uuid4(), random.random()

digest = hashlib.sha256(b"x").hexdigest()
cached = functools.lru_cache(work)
with DAG("hooks", schedule=None):
    PythonOperator(task_id="a", python_callable=work)
""",
    "a directory of modules": """
import sys
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "modules"))
"""
    + SIMPLE,
    "files that are looked for": """
HERE = os.path.dirname(os.path.abspath(__file__))
if os.path.exists(os.path.join(HERE, "special.json")) or Path(HERE, "other.json").is_file():
    raise RuntimeError
"""
    + SIMPLE,
    "dates from texts": """
import calendar, zoneinfo
START = datetime.strptime("2024-01-01", "%Y-%m-%d")
OTHER = datetime.fromisoformat("2024-01-01T00:00:00+00:00")
assert START.strftime("%A") in calendar.day_name and datetime.fromtimestamp(0)
with DAG("dated", schedule=None, start_date=START.replace(tzinfo=zoneinfo.ZoneInfo("Europe/Rome"))):
    EmptyOperator(task_id="a")
""",
    "quiet libraries": """
import logging, warnings
warnings.filterwarnings("ignore")
warnings.warn("of no interest")
logging.getLogger("py4j").setLevel(logging.ERROR)
logging.getLogger("py4j").warning("of no interest")
"""
    + SIMPLE,
    "modules by their names": {
        "dag.py": """
import importlib, importlib.util, inspect, pkgutil, sys
for found in pkgutil.iter_modules([str(Path(__file__).parent / "parts")]):
    importlib.import_module(f"parts.{found.name}").make()
spec = importlib.util.spec_from_file_location("other", Path(__file__).parent / "other.py")
other = importlib.util.module_from_spec(spec)
spec.loader.exec_module(other)
assert inspect.getsource(other) and spec
"""
        + SIMPLE,
        "parts/a.py": "def make():\n    pass\n",
        "other.py": "X = 1\n",
    },
    "a csv and a configuration": {
        "dag.py": """
import configparser, csv, tomllib
config = configparser.ConfigParser()
config.read([str(Path(__file__).parent / "a.ini"), "BUNDLE/missing.ini"])
with open("BUNDLE/a.csv", newline="") as file:
    rows = list(csv.DictReader(file))
for row in rows:
    with DAG(row["name"], schedule=None, params=dict(config["a"])):
        EmptyOperator(task_id="a")
""",
        "a.ini": "[a]\nb = 1\n",
        "a.csv": "name\none\ntwo\n",
    },
    "a factory of DAGs": {
        "dag.py": """
from factory import make
for number in range(3):
    globals()[f"d{number}"] = make(f"d{number}")
""",
        "factory.py": """
from airflow.sdk import DAG, task
from contextlib import contextmanager

def make(name):
    with DAG(name, schedule=None) as made:
        @task
        def work():
            from heavy import compute
            return compute()
        work()
    return made
""",
    },
    "jinja": """
from jinja2 import Environment, FileSystemLoader, Template
assert Template("{{ a }}").render(a=1) == "1"
Environment(loader=FileSystemLoader("BUNDLE"))
"""
    + SIMPLE,
    "an executor and resources": """
with DAG("resources", schedule=None, owner_links={"me": "http://x"}):
    EmptyOperator(task_id="a", executor_config={"a": 1}, weight_rule="upstream", max_active_tis_per_dag=1)
""",
}

# What must not be shared, and why.
REFUSED: dict[str, tuple[str, str]] = {
    "datetime.now": ("NOW = datetime.now()\n", "it reads the time"),
    "datetime.utcnow": ("NOW = datetime.utcnow()\n", "it reads the time"),
    "date.today": ("import datetime as dt\nTODAY = dt.date.today()\n", "it reads the time"),
    "time.time": ("import time\nNOW = time.time()\n", "it reads the time"),
    "time by another name": ("from time import monotonic as m\nNOW = m()\n", "it reads the time"),
    "strftime": ("import time\nNOW = time.strftime('%Y')\n", "it reads the time"),
    "pendulum.now": ("import pendulum\nNOW = pendulum.now('UTC')\n", "it reads the time"),
    "pendulum.today": ("import pendulum\nNOW = pendulum.today('Europe/Rome').add(days=-1)\n", "it reads the time"),
    "utcnow of Airflow's": ("from airflow.sdk import timezone\nNOW = timezone.utcnow()\n", "it reads the time"),
    "start_date": (
        "with DAG('a', start_date=datetime.now() - timedelta(days=1)):\n    EmptyOperator(task_id='a')\n",
        "it reads the time",
    ),
    "time in a helper": (
        "def now():\n    return datetime.now()\nNOW = sorted([1], key=lambda _: now())\n",
        "it reads the time",
    ),
    "time in an operator": (
        (
            "from airflow.sdk import BaseOperator\n"
            "class Mine(BaseOperator):\n"
            "    def __init__(self, **kwargs):\n"
            "        super().__init__(**kwargs)\n"
            "        self.at = datetime.now()\n"
            "with DAG('a', schedule=None):\n    Mine(task_id='a')\n"
        ),
        "it reads the time",
    ),
    "time of a dataclass": (
        (
            "from dataclasses import dataclass, field as f\n@dataclass\nclass A:\n"
            "    at: datetime = f(default_factory=datetime.now)\nA()\n"
        ),
        "it reads the time",
    ),
    "random": ("import random\nX = random.random()\n", "it draws a random number"),
    "random.choice": ("import random\nX = random.choice([1, 2])\n", "it draws a random number"),
    "random with a seed": ("import random\nX = random.Random(5).randint(1, 6)\n", "it draws a random number"),
    "uuid4": ("import uuid\nX = uuid.uuid4()\n", "it draws a random number"),
    "uuid1": ("import uuid\nX = uuid.uuid1()\n", "it"),
    "secrets": ("import secrets\nX = secrets.token_hex()\n", "it draws a random number"),
    "urandom": ("X = os.urandom(3)\n", "it draws a random number"),
    "numpy.random": ("import numpy as np\nX = np.random.rand()\n", "it draws a random number"),
    "numpy.random.default_rng": (
        "import numpy as np\nX = np.random.default_rng().random()\n",
        "it draws a random number",
    ),
    "pandas.Timestamp.now": ("import pandas as pd\nX = pd.Timestamp.now()\n", "it may read the time"),
    "pandas.to_datetime": ("import pandas as pd\nX = pd.to_datetime('today')\n", "it may read the time"),
    "numpy.datetime64": ("import numpy as np\nX = np.datetime64('now')\n", "it may read the time"),
    "pandas.DataFrame.sample": (
        "import pandas as pd\nX = pd.DataFrame({'a': [1, 2]}).sample(1)\n",
        "it draws a random number",
    ),
    "numpy.random.seed": ("import numpy as np\nnp.random.seed(1)\n", "it draws a random number"),
    "TimeSensor": (
        (
            "from datetime import time\nfrom airflow.providers.standard.sensors.time import TimeSensor\n"
            "with DAG('a', schedule=None):\n    TimeSensor(task_id='a', target_time=time(1, 2))\n"
        ),
        "it reads the time",
    ),
    "dateutil": ("from dateutil.parser import parse\nX = parse('10:00')\n", "it reads the time"),
    "hostname": ("import socket\nX = socket.gethostname()\n", "it asks for the name of the machine"),
    "atexit": ("import atexit\natexit.register(print)\n", "it wants to do something at its end"),
    "how old a file is": ("X = [e.stat().st_mtime for e in os.scandir('BUNDLE')]\n", "it asks when a file"),
    "the first stdout": ("import sys\nsys.__stdout__.write('hello')\n", "it prints (dag.py, line"),
    "environment in bytes": ("X = os.environb.get(b'AIRFLOW_CTX_DAG_ID')\n", "it reads $AIRFLOW_CTX_DAG_ID"),
    "old import": ("from airflow.operators.python import PythonOperator\n" + SIMPLE, "it warns"),
    "time by an argument": ("def f(now=datetime.now):\n    return now()\nX = f()\n", "it reads the time"),
    "time in a thread": ("import threading\nt = threading.Timer(0, print)\nt.start()\n", "it starts a thread"),
    "getpid": ("X = os.getpid()\n", "it asks which process it is in"),
    "Variable": ("from airflow.sdk import Variable\nX = Variable.get('table')\n", "it reads a Variable"),
    "Variable with a default": (
        "from airflow.sdk import Variable as V\ntry:\n    V.get('nothing', None)\nexcept ValueError:\n    pass\n",
        "it reads a Variable",
    ),
    "old Variable": ("from airflow.models import Variable\nX = Variable.get('table')\n", "it"),
    "Connection": ("from airflow.sdk import Connection\nX = Connection.get('store')\n", "it reads a Connection"),
    "BaseHook": ("from airflow.sdk import BaseHook\nX = BaseHook.get_connection('store')\n", "it reads a Connection"),
    "a hook": (
        "from airflow.providers.sqlite.hooks.sqlite import SqliteHook\nX = SqliteHook('store').get_conn()\n",
        "it reads a Connection",
    ),
    "XCom": (
        "from airflow.sdk.bases.xcom import BaseXCom as X\nX.get_one(key='a', dag_id='a', task_id='a', run_id='a')\n",
        "it reads an XCom",
    ),
    "supervisor": (
        "from airflow.sdk.execution_time.comms import CommsDecoder\nCommsDecoder.send(None, None)\n",
        "it talks to its supervisor",
    ),
    "parsing context": (
        "from airflow.sdk import get_parsing_context\nX = get_parsing_context().dag_id\n",
        "it asks which task",
    ),
    "current context": (
        "from airflow.sdk import get_current_context\ntry:\n    get_current_context()\nexcept Exception:\n    pass\n",
        "it asks for the context",
    ),
    "session": (
        "from airflow.utils.session import create_session\nwith create_session() as s:\n    pass\n",
        "it opens a database",
    ),
    "engine": (
        "from sqlalchemy import create_engine\ncreate_engine('sqlite:///BUNDLE/made').connect()\n",
        "it opens a database",
    ),
    "sqlite": ("import sqlite3\nsqlite3.connect('BUNDLE/made')\n", "it opens a database"),
    "writes a file": ("open('BUNDLE/made', 'w')\n", "it opens a file to write it"),
    "appends to a file": (
        "with open('BUNDLE/dag.py', 'a') as f:\n    f.write('made')\n",
        "it opens a file to write it",
    ),
    "write_text": ("Path('BUNDLE/made').write_text('')\n", "it opens a file to write it"),
    "os.open": ("os.open('BUNDLE/made', os.O_CREAT)\n", "it opens a file to write it"),
    "swallows it": (
        "for n in range(3):\n    try:\n        open(f'BUNDLE/made{n}', 'w')\n    except BaseException:\n        pass\n"
        + SIMPLE,
        "it opens a file to write it",
    ),
    "swallows another": (
        "for n in range(3):\n    try:\n        os.mkfifo(f'BUNDLE/made{n}')\n    except:\n        pass\n" + SIMPLE,
        "it changes something outside",
    ),
    "mkdir": ("os.makedirs('BUNDLE/made', exist_ok=True)\n", "it changes a file"),
    "Path.mkdir": ("Path('BUNDLE/made').mkdir(exist_ok=True)\n", "it changes a file"),
    "remove": ("os.remove('BUNDLE/dag.py')\n", "it changes a file"),
    "rename": ("os.rename('BUNDLE/dag.py', 'BUNDLE/made')\n", "it changes a file"),
    "mkfifo": ("os.mkfifo('BUNDLE/made')\n", "it changes something outside"),
    "tempfile": ("import tempfile\nX = tempfile.mkdtemp(dir='BUNDLE')\n", "it"),
    "NamedTemporaryFile": ("import tempfile\nX = tempfile.NamedTemporaryFile(dir='BUNDLE')\n", "it"),
    "shutil": ("import shutil\nshutil.copy('BUNDLE/dag.py', 'BUNDLE/made')\n", "it"),
    "subprocess": ("import subprocess\nsubprocess.run(['touch', 'BUNDLE/made'])\n", "it starts a process"),
    "os.system": ("os.system('touch BUNDLE/made')\n", "it starts a process"),
    "os.popen": ("os.popen('touch BUNDLE/made').read()\n", "it starts a process"),
    "fork": ("if os.fork() == 0:\n    open('BUNDLE/made', 'w')\n    os._exit(0)\n", "it starts a process"),
    "multiprocessing": ("import multiprocessing as m\nm.Process(target=print).start()\n", "it"),
    "thread": ("import threading\nthreading.Thread(target=print).start()\n", "it starts a thread"),
    "pool": ("from concurrent.futures import ThreadPoolExecutor as P\nlist(P().map(str, [1]))\n", "it starts a thread"),
    "asyncio": ("import asyncio\nasync def f():\n    pass\nasyncio.run(f())\n", "it"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', PORT))\n", "it opens a socket"),
    "urllib": ("import urllib.request as r\nr.urlopen('http://127.0.0.1:PORT')\n", "it"),
    "requests": ("import requests\nrequests.get('http://127.0.0.1:PORT')\n", "it"),
    "sleep": ("import time\ntime.sleep(1000)\n", "it waits"),
    "signal": ("import signal\nsignal.signal(signal.SIGUSR1, print)\n", "it handles signals"),
    "chdir": ("os.chdir('/')\n", "it changes the working directory"),
    "umask": ("os.umask(0o77)\n", "it changes something outside"),
    "locale": ("import locale\nlocale.setlocale(locale.LC_ALL, 'C.UTF-8')\n", "it changes the locale"),
    "environment": ("os.environ['X'] = 'y'\n", "it changes the environment"),
    "prints": ("print('hello')\n", "it prints (dag.py, line"),
    "writes to stderr": ("import sys\nsys.stderr.write('hello')\n", "it prints (dag.py, line"),
    "writes to a descriptor": ("os.write(1, b'hello')\n", "it changes something outside"),
    "keeps stdout": ("import sys\nOUT = sys.stdout\n", "it keeps a standard stream"),
    "logs": ("import logging\nlogging.getLogger(__name__).warning('hello %s', 1)\n", "it logs (dag.py, line"),
    "logs with structlog": ("import structlog\nstructlog.get_logger().warning('hello')\n", "it logs (dag.py, line"),
    "sets up logging": (
        "import logging\nlogging.getLogger('a').addHandler(logging.StreamHandler())\n",
        "it sets up logging",
    ),
    "warns": ("import warnings\nwarnings.warn('hello')\n", "it warns"),
    "environment of a task": ("X = os.environ.get('AIRFLOW_CTX_DAG_ID')\n", "it reads $AIRFLOW_CTX_DAG_ID"),
    "environment of a job": ("X = os.getenv('AIR_EXECUTOR_JOB_ID')\n", "it reads $AIR_EXECUTOR_JOB_ID"),
    "all of the environment": ("X = {k: v for k, v in os.environ.items()}\n", "it reads all of the environment"),
    "copy of the environment": ("X = os.environ.copy()\n", "it reads all of the environment"),
    "leaves a file open": ("FILE = open(__file__)\n", "it leaves a file or a socket open"),
    "/proc": ("X = open('/proc/self/stat').read()\n", "it reads /proc/self/stat"),
    "cannot be imported": ("import no_such_module\n", "it cannot be imported"),
    "error": ("1 / 0\n", "it cannot be imported"),
    "exits": ("import sys\nsys.exit(0)\n", "it cannot be imported"),
    "ctypes": ("import ctypes\nctypes.CDLL(None).getpid()\n", "it calls a library in C"),
    "a profiler": ("import sys\nsys.setprofile(None)\n", "it causes sys.setprofile"),
    "mmap": ("import mmap\nX = mmap.mmap(-1, 4096)\n", "it causes mmap"),
    "many files": ("for n in range(101):\n    os.path.exists(f'BUNDLE/{n}')\n", "it depends on more than 100 files"),
    "keeps stdout in something": (
        "import sys\nclass A:\n    def __init__(self):\n        self.out = sys.stdout\nB = A()\n",
        "it keeps a standard stream",
    ),
    "parquet": ("try:\n    import pyarrow.parquet\nexcept ImportError:\n    pass\n", "it may read files"),
    "exec": ("exec('import time; X = time.time()')\n", "it reads the time"),
}


def _needs(text: str) -> None:
    for name in ("pandas", "numpy", "requests"):
        if f"import {name}" in text and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("name", SHARED)
def test_a_harmless_file_may_be_shared(watch: Watch, name: str) -> None:
    case = SHARED[name]
    files = {"dag.py": case} if isinstance(case, str) else dict(case)
    begin, text = BEGIN, files["dag.py"]
    if "from __future__" in text:
        begin, text = (
            "from __future__ import annotations\n" + BEGIN,
            text.replace("from __future__ import annotations\n", ""),
        )
    _needs(text)
    seen = watch({**files, "dag.py": begin + text})
    assert seen["why_not"] == ""
    assert seen["errors"] == {}
    assert seen["dags"] or name == "nothing"


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_differ_or_does_something_is_refused_before_it_happens(
    watch: Watch, name: str, tmp_path: Path
) -> None:
    text, why = REFUSED[name]
    _needs(text)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        whole = (BEGIN + text).replace("PORT", str(server.getsockname()[1]))
        seen = watch({"dag.py": whole})
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
    assert seen["why_not"].startswith(why)
    assert [path.name for path in tmp_path.iterdir()] == ["dag.py"]
    assert (tmp_path / "dag.py").read_text() == whole.replace("BUNDLE", str(tmp_path))


def _files(seen: dict[str, Any], bundle: Path) -> set[str]:
    """What it depends on, within its bundle."""
    return {os.path.relpath(path, bundle) for path in seen["files"] if path.startswith(str(bundle))}


def test_its_modules_and_what_they_read_is_what_a_file_depends_on(watch: Watch, tmp_path: Path) -> None:
    seen = watch(
        {
            "dag.py": BEGIN + "import parts.one\nfrom two import X\n" + SIMPLE,
            "parts/__init__.py": "",
            "parts/one.py": "import json\njson.load(open('BUNDLE/a.json'))\n",
            "two.py": "import os\nX = os.path.exists('BUNDLE/b.json') or os.listdir('BUNDLE/c')\n",
            "a.json": "{}",
            "c/d": "",
        }
    )
    assert seen["why_not"] == ""
    assert _files(seen, tmp_path) == {
        *("dag.py", "parts/__init__.py", "parts/one.py", "two.py", "a.json", "b.json", "c")
    }
    assert stamps(seen["files"]) == seen["files"]
    assert seen["files"][str(tmp_path / "b.json")] == []
    found = (tmp_path / "a.json").stat()
    assert seen["files"][str(tmp_path / "a.json")] == [found.st_mtime_ns, found.st_size, found.st_ino]


@pytest.mark.parametrize("name", ["a.json", "b.json", "c/e", "two.py"])
def test_a_change_of_one_of_them_is_seen(watch: Watch, tmp_path: Path, name: str) -> None:
    text = "import two\nopen('BUNDLE/a.json').close()\nos.path.exists('BUNDLE/b.json')\nos.listdir('BUNDLE/c')\n"
    seen = watch({"dag.py": BEGIN + text + SIMPLE, "a.json": "{}", "c/d": "", "two.py": ""})
    assert seen["why_not"] == ""
    (tmp_path / name).write_text("changed")
    assert stamps(seen["files"]) != seen["files"]


def test_a_module_that_is_not_there_may_appear(watch: Watch, tmp_path: Path) -> None:
    seen = watch({"dag.py": BEGIN + "try:\n    import mine\nexcept ImportError:\n    pass\n" + SIMPLE})
    assert seen["why_not"] == ""
    assert _files(seen, tmp_path) == {"dag.py", "mine.py", "mine"}


@pytest.mark.parametrize("how", ["os.path.getmtime('BUNDLE/c')", "Path('BUNDLE/c').stat()", "os.stat('BUNDLE/c')"])
def test_what_asks_for_the_time_of_a_directory_depends_on_it(watch: Watch, tmp_path: Path, how: str) -> None:
    seen = watch({"dag.py": f"{BEGIN}X = {how}\n{SIMPLE}", "c/d": ""})
    assert (seen["why_not"], _files(seen, tmp_path)) == ("", {"dag.py", "c"})


def test_what_asks_whether_there_is_a_directory_does_not_depend_on_what_is_in_it(watch: Watch, tmp_path: Path) -> None:
    text = "assert os.path.isdir('BUNDLE/c') and Path('BUNDLE/c').exists() and Path('BUNDLE/c').resolve()\n"
    seen = watch({"dag.py": BEGIN + text + SIMPLE, "c/d": ""})
    assert (seen["why_not"], _files(seen, tmp_path)) == ("", {"dag.py"})


def test_a_directory_may_become_a_package(watch: Watch, tmp_path: Path) -> None:
    seen = watch({"dag.py": BEGIN + "import parts.one\n" + SIMPLE, "parts/one.py": ""})
    assert (seen["why_not"], _files(seen, tmp_path)) == ("", {"dag.py", "parts/__init__.py", "parts/one.py"})


def test_modules_that_have_been_compiled_are_known_by_their_sources(watch: Watch, tmp_path: Path) -> None:
    files = {"dag.py": BEGIN + "import helper\n" + SIMPLE, "helper.py": "X = 1\n"}
    watch(files)
    assert not list(tmp_path.rglob("*.pyc"))
    subprocess.run([sys.executable, "-m", "compileall", "-q", tmp_path], check=True)
    seen = watch({})
    assert seen["why_not"] == ""
    assert _files(seen, tmp_path) == {"dag.py", "helper.py"}


def test_what_is_in_a_zip_file_is_not_shared(watch: Watch, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
        archive.writestr("zipped.py", "X = 1\n")
    seen = watch({"dag.py": BEGIN + "import sys\nsys.path.append('BUNDLE/parts.zip')\nimport zipped\n" + SIMPLE})
    assert seen["why_not"]


def test_the_first_of_what_was_refused_is_said_with_its_place(watch: Watch) -> None:
    seen = watch({"dag.py": "import helper\n", "helper.py": "\nimport time\n\nX = time.time()\nprint(X)\n"})
    assert seen["why_not"] == "it reads the time (helper.py, line 4)"


def test_what_is_refused_gives_nothing_to_the_file_that_catches_the_exception(watch: Watch) -> None:
    text = """
from airflow.sdk import Variable
try:
    got = Variable.get("table")
except BaseException as error:
    got = type(error).__name__
raise RuntimeError(f"got {got}")
"""
    seen = watch({"dag.py": BEGIN + text})
    assert seen["why_not"] == "it reads a Variable (dag.py, line 11)"
    assert "got _RefusedError" in seen["errors"]["dag.py"]
