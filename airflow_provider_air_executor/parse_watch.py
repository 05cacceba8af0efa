"""Executes a DAG file once under watch, and says whether what it makes may be shared by later tasks.

A task that is forked from a process that has executed its DAG file finds it executed. That is right only if the file
makes the same in each task, and does nothing to the world outside. What is not known to be harmless is refused.

Three things watch. Python's audit events say what is about to be done outside: all but a few are refused before it
happens. The profiler sees each call, and so what the events do not say: that the time is read, a random number drawn,
a Variable asked for. And what the process is like is compared with what it was before.

A call counts as the file's if code of the user's has made it, directly or through libraries. What a library does when
it is imported is its own affair, and so is what Airflow does when no code of the user's is running.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import locale
import logging
import os
import random
import signal
import site
import stat
import sys
import sysconfig
import threading
import time
import types
import zipimport
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.system import installed
from airflow_provider_air_executor.system.stamps import Stamped, stamp

_stat = os.stat  # as it is without the watch
_MAX_FILES = 100
_PACKAGE = str(Path(__file__).parent)

# -- audit events ------------------------------------------------------------------------------------------

_ALLOWED = {
    *("compile", "exec", "marshal.dumps", "marshal.load", "marshal.loads", "code.__new__"),
    *("object.__getattr__", "object.__setattr__", "object.__delattr__", "function.__new__", "array.__new__"),
    *("sys._getframe", "sys._getframemodulename", "sys._current_frames", "sys.excepthook", "sys.unraisablehook"),
    *("builtins.id", "gc.get_objects", "gc.get_referents", "gc.get_referrers", "pickle.find_class"),
    *("glob.glob", "glob.glob/2", "pathlib.Path.glob", "pathlib.Path.rglob", "os.walk", "os.fwalk"),
}
# What a library may do besides when it is imported. urllib3 finds out so whether there is IPv6.
# numpy changes the environment, and back: it is compared in the end.
_ALLOWED_AT_IMPORT = {"socket.__new__", "socket.bind", "socket.gethostname", "mmap.__new__", "os.putenv", "os.unsetenv"}
_ALLOWED_START_AT_IMPORT = ("ctypes.",)
_LISTS = {"os.listdir", "os.scandir"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {  # how an event that is refused is said; the first that fits
    "open": "it opens a file to write it",
    "socket.gethostname": "it asks for the name of the machine",
    "socket.": "it opens a socket",
    "subprocess.": "it starts a process",
    "os.system": "it starts a process",
    "os.exec": "it starts a process",
    "os.fork": "it starts a process",
    "os.posix_spawn": "it starts a process",
    "os.spawn": "it starts a process",
    "pty.spawn": "it starts a process",
    "sqlite3.": "it opens a database",
    "urllib.": "it asks a server",
    "http.client": "it asks a server",
    "os.putenv": "it changes the environment",
    "os.unsetenv": "it changes the environment",
    "os.kill": "it sends a signal",
    "os.chdir": "it changes the working directory",
    "os.": "it changes a file",
    "shutil.": "it changes a file",
    "tempfile.": "it makes a temporary file",
    "_thread.": "it starts a thread",
    "time.sleep": "it waits",
    "ctypes.": "it calls a library in C",
}

# -- calls of functions in C -------------------------------------------------------------------------------

_TIME, _CHANCE, _PROCESS = "it reads the time", "it draws a random number", "it asks which process it is in"
_CLOCKS = "time monotonic perf_counter process_time thread_time clock_gettime"
_CLASS = "a class"
_NOW = ("now", "utcnow", "today")
_NOTED = {  # module -> names; the file goes on
    "time": (_TIME, f"{_CLOCKS} {_CLOCKS.replace(' ', '_ns ')}_ns localtime gmtime ctime strftime asctime tzset"),
    _CLASS: (_TIME, " ".join(_NOW)),  # as datetime's
    "random": (_CHANCE, "random getrandbits seed setstate getstate"),
    "posix": (_CHANCE, "urandom getrandom"),
    "_uuid": (_CHANCE, "generate_time_safe"),
    "atexit": ("it wants to do something at its end", "register"),
    "os.DirEntry": ("it asks when a file was changed", "stat inode"),
}
_NOTED_OF_PROCESS = {
    "posix": "getpid getppid getpgid getpgrp getsid times getloadavg sched_getaffinity getlogin",
    "_thread": "get_native_id",
    "resource": "getrusage",
}
_REFUSED = {  # module -> names; before it happens
    "posix": (
        "it changes something outside",
        (
            "write writev pwrite pwritev sendfile mkfifo mknod umask setsid setuid setgid seteuid setegid setreuid "
            "setregid setresuid setresgid setgroups setpgid setpgrp tcsetpgrp nice _exit abort dup2 fsync memfd_create "
            "eventfd openpty wait waitpid wait3 wait4 waitid sched_setaffinity setpriority unshare setns splice chroot "
            "copy_file_range sync posix_fallocate register_at_fork login_tty pidfd_open initgroups"
        ),
    ),
    "_signal": ("it handles signals", "signal setitimer alarm pthread_sigmask raise_signal set_wakeup_fd siginterrupt"),
    "_thread": ("it starts a thread", "start_new_thread start_new start_joinable_thread"),
    "_posixsubprocess": ("it starts a process", "fork_exec"),
    "_posixshmem": ("it shares memory with other processes", "shm_open shm_unlink"),
    "time": ("it waits", "sleep"),
    "faulthandler": ("it handles signals", "enable register dump_traceback_later"),
    "psycopg2._psycopg": ("it opens a database", "_connect"),
    **dict.fromkeys(("MySQLdb._mysql", "pyodbc", "duckdb", "_duckdb", "oracledb"), ("it opens a database", "connect")),
}

# -- calls of functions in Python: their names -> the start of their module, what they do --------------------

_DATABASE, _SETS_UP_LOGGING = "it opens a database", "it sets up logging"
_CALLS = (  # whoever calls them; but for the logging, which libraries may set up
    (
        "it reads a Variable",
        "airflow.",
        (
            "Variable.get Variable.set Variable.keys Variable.delete Variable.update Variable.setdefault "
            "Variable.get_variable_from_secrets _get_variable _get_variable_keys _set_variable _delete_variable"
        ),
    ),
    (
        "it reads a Connection",
        "airflow.",
        (
            "Connection.get Connection.async_get Connection.get_connection_from_secrets BaseHook.get_connection "
            "BaseHook.aget_connection BaseHook.get_hook BaseHook.aget_hook _get_connection _async_get_connection"
        ),
    ),
    (
        "it reads an XCom",
        "airflow.",
        "BaseXCom.get_one BaseXCom.get_value BaseXCom.get_all BaseXCom.get_many BaseXCom.set BaseXCom.delete",
    ),
    ("it talks to its supervisor", "airflow.", "CommsDecoder.send CommsDecoder.asend"),
    ("it asks which task is run", "airflow.", "get_parsing_context"),
    ("it asks for the context of the task", "airflow.", "get_current_context"),
    (_DATABASE, "airflow.", "create_session create_session_async"),
    (_DATABASE, "sqlalchemy.", "Engine.connect Engine.raw_connection Pool.connect"),
    (_DATABASE, "psycopg.", "Connection.connect AsyncConnection.connect"),
    ("it shares memory with other processes", "multiprocessing.", "SemLock.__init__"),
    (_SETS_UP_LOGGING, "logging", "StreamHandler.__init__ basicConfig dictConfig fileConfig Logger.addHandler"),
)
_MODULES = {name: (start, what) for what, start, names in _CALLS for name in names.split()}
_LOGS = {"Logger.handle": "logging", "BoundLoggerBase._proxy_to_logger": "structlog."}
_WARNS = "_showwarnmsg"
_WATCHED_CALLS = {*_MODULES, *_LOGS, _WARNS}
_OWN_LINE = "Filling up the DagBag"  # which Airflow logs each time

# Functions of Airflow's that ask for something of which nothing is left in what they make.
_INNOCENT = {("airflow.timetables._cron", "CronMixin.__init__")}  # croniter reads the time, and is thrown away
_DURATIONS = {"perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time"}  # Airflow's, for its log
_PROVIDERS = "airflow.providers."  # their operators are libraries as any

# Libraries whose functions the profiler does not see: of what may be the time it is enough that it is named.
_UNSEEN = {"numpy", "pandas", "polars"}
_NUMPY_RANDOM = "numpy.random"
# Libraries that read files without Python, and functions that use them.
_UNSEEN_READERS = {
    *("lxml", "pyarrow", "polars", "h5py", "netCDF4", "osgeo", "rasterio", "fiona", "geopandas", "cv2", "duckdb"),
    *("read_parquet", "read_feather", "read_orc", "read_hdf"),
}

_TASK_VARIABLES = ("AIR_EXECUTOR_", "_AIRFLOW_", "AIRFLOW_CTX_")  # environment variables that each task has its own of
_THREADS_SURVIVE = {"numpy", "scipy", "pyarrow"}  # their libraries start their threads anew in a forked process


class Watched(NamedTuple):
    """What was seen of a DAG file that was executed."""

    why_not: str  # '' if what the file makes may be shared; else why not, in a few plain words
    files: Stamped  # what it depends on, by absolute paths


def watch(parse: Callable[[], object], bundle_path: str) -> Watched:
    """Execute a DAG file under watch, in a process that was forked for it and ends after it.

    :param parse: executes it, and returns the bag of its DAGs.
    :param bundle_path: the directory of its bundle.
    """
    return _Watch(parse, bundle_path).run()


class _RefusedError(BaseException):
    """What the file was about to do is refused; it is not to catch that."""


# -- whose a file is ---------------------------------------------------------------------------------------

_TIMES_OF_FILES = {"getmtime", "getctime", "getatime"}
_USERS, _INSTALLED, _IMPORT, _NOBODYS = "user", "installed", "import", ""


class Owners:
    """Knows of each file whether it is the user's, or part of an installed package or of Python.

    :param bundle_path: the directory of a bundle; what is in it is the user's, but for packages installed in there.
    """

    def __init__(self, bundle_path: str) -> None:
        paths = sysconfig.get_paths()
        roots = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        roots += [*site.getsitepackages(), site.getusersitepackages(), *installed.directories(), _PACKAGE]
        roots.append(
            os.path.join(os.path.dirname(paths["stdlib"]), f"python{sysconfig.get_config_var('py_version_nodot')}.zip")
        )
        for name in ("airflow", "airflow.sdk"):  # where developers of Airflow have it
            roots += getattr(sys.modules.get(name), "__path__", ())
        found = {root: _INSTALLED for path in roots for root in (path, os.path.realpath(path))}
        found |= dict.fromkeys((bundle_path, os.path.realpath(bundle_path)), _USERS)
        self._roots = sorted(
            ((f"{root.rstrip('/')}/", owner) for root, owner in found.items()), key=lambda x: -len(x[0])
        )
        self._known: dict[str, str] = {}

    def of(self, path: str) -> str:
        """Whose it is; code that was made while running, as that of a dataclass, is nobody's."""
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def _find(self, path: str) -> str:
        if path.startswith("<"):
            return _IMPORT if path.startswith("<frozen importlib") else _NOBODYS
        return next((owner for root, owner in self._roots if f"{path}/".startswith(root)), _USERS)

    def has_user(self, path: str) -> bool:
        """Whether it is the user's."""
        return self.of(path) is _USERS

    def are_installed(self, path: str) -> None:
        """Let what is in a file count as no code of the user's."""
        if not path.startswith("<"):
            self._known[path] = _INSTALLED

    def asker(self, frame: types.FrameType | None) -> types.FrameType | None:
        """The user's code for which something is called, if it is."""
        while frame is not None:
            code = frame.f_code
            owner = self.of(code.co_filename)
            if code is _Watch.run.__code__:  # whose caller is not watched
                return None
            if owner is _USERS:
                return frame
            if owner is _IMPORT or _is_innocent(frame) or (owner is _INSTALLED and code.co_name == "<module>"):
                return None
            frame = frame.f_back
        return None

    def is_importing(self, frame: types.FrameType | None) -> bool:
        """Whether something is called because an installed module is being imported, or by the import of any."""
        return frame is not None and (self.of(frame.f_code.co_filename) is _IMPORT or self.is_at_import(frame))

    def is_at_import(self, frame: types.FrameType | None) -> bool:
        """Whether an installed module that is being imported calls something, directly or through libraries."""
        while frame is not None and (owner := self.of(frame.f_code.co_filename)) is not _USERS:
            if owner is _INSTALLED and frame.f_code.co_name == "<module>":
                return True
            frame = frame.f_back
        return False

    def is_imported_by_user(self, frame: types.FrameType | None) -> bool:
        """Whether it is code of the user's that imports something."""
        while frame is not None and self.of(frame.f_code.co_filename) in (_IMPORT, _NOBODYS):
            frame = frame.f_back
        return frame is not None and self.of(frame.f_code.co_filename) is _USERS

    def wants_stat(self, frame: types.FrameType) -> bool:
        """Whether it is code of the user's that gets the status of a file, and not only that there is one."""
        if frame.f_code.co_name in _TIMES_OF_FILES:
            return True
        caller = frame.f_back if frame.f_code.co_name == "stat" else frame  # of Path.stat
        return caller is not None and self.of(caller.f_code.co_filename) is _USERS

    def keeps(self, *things: object) -> bool:
        """Whether a module of the user's has one of these as a value, or as an attribute of one."""
        kept = {id(thing) for thing in things}
        for module in list(sys.modules.values()):
            if self.of(getattr(module, "__file__", None) or "<") is _USERS:
                for value in vars(module).values():
                    if id(value) in kept or kept.intersection(map(id, getattr(value, "__dict__", {}).values())):
                        return True
        return False


def _is_innocent(frame: types.FrameType) -> bool:
    return (frame.f_globals.get("__name__", ""), frame.f_code.co_qualname) in _INNOCENT


# -- what it depends on ------------------------------------------------------------------------------------


class _Files:
    """The files that were read, each as it was before."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self.found: Stamped = {}
        self.has_zip = False

    def add(self, path: Any) -> None:
        """It is about to be read."""
        name = os.path.abspath(os.fsdecode(path))
        if name.endswith(".pyc") and "__pycache__" in name:
            with contextlib.suppress(ValueError):
                name = importlib.util.source_from_cache(name)
        if name in self.found or self._owners.of(name) is _INSTALLED:
            return
        self.found[name] = stamp(name)
        self.has_zip |= name.endswith((".zip", ".egg", ".whl"))

    def look_for(self, path: Any, *, wants_time: bool) -> None:
        """It is looked whether it is there.

        :param wants_time: that when it was changed may be asked for; else a directory may change.
        """
        if isinstance(path, int):
            return
        try:
            is_directory = stat.S_ISDIR(_stat(path).st_mode)
        except (OSError, ValueError):
            is_directory = False
        if wants_time or not is_directory:
            self.add(path)

    def add_modules(self, imported: Iterable[str]) -> None:
        """Add the modules that are loaded, and where those would be that were not found."""
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and os.path.isabs(path):
                self.add(path)
                is_zipped = isinstance(getattr(module, "__loader__", None), zipimport.zipimporter)
                self.has_zip |= is_zipped and self._owners.of(path) is _USERS
            elif path is None:  # there may be directories that are no package yet
                for directory in getattr(module, "__path__", ()):
                    self.add(os.path.join(directory, "__init__.py"))
        for name in imported:
            if name not in sys.modules:
                for path in self._places(name):
                    self.add(path)

    def _places(self, name: str) -> Iterator[str]:
        parent, _, last = name.rpartition(".")
        directories = getattr(sys.modules.get(parent), "__path__", ()) if parent else sys.path
        for directory in directories:
            place = os.path.join(directory or os.getcwd(), last)
            if self._owners.of(f"{place}.py") is _USERS:
                yield from (f"{place}.py", place)


# -- the environment, as the file reads it -----------------------------------------------------------------


class _Environment(dict[Any, Any]):
    """The environment in ``os.environ``, which tells what is read.

    :param is_read: called with the name of a variable; None: with all of them.
    """

    def __init__(self, data: dict[Any, Any], is_read: Callable[[Any], None]) -> None:
        super().__init__(data)
        self._is_read = is_read

    def __getitem__(self, name: Any) -> Any:
        self._is_read(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[Any]:
        self._is_read(None)
        return super().__iter__()


# -- what the process is like ------------------------------------------------------------------------------


def _descriptors() -> list[tuple[str, str]]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was that of the directory
            found.append((number, os.readlink(f"/proc/self/fd/{number}")))
    return sorted(found)


def _umask() -> str:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((line for line in lines if line.startswith("Umask:")), "")


def _handlers() -> list[Any]:
    """What handles signals, but for those two for which Airflow's importer has handlers of its own."""
    numbers = signal.valid_signals() - {signal.SIGSEGV, signal.SIGALRM}
    return [(number, signal.getsignal(number)) for number in sorted(numbers)]


def _numpy_state() -> Any:
    """The state of numpy's global generator of random numbers; a profiler does not see that it is used."""
    get_state = getattr(sys.modules.get(_NUMPY_RANDOM), "get_state", None)
    return None if get_state is None else repr(get_state())


def _native_threads() -> int | None:
    """How many threads there are, if that is not by a library that knows what to do."""
    return None if any(name in sys.modules for name in _THREADS_SURVIVE) else len(os.listdir("/proc/self/task"))


def _loggers() -> tuple[Any, ...]:
    root = logging.root
    return root.level, [id(handler) for handler in root.handlers], root.manager.disable


_ASPECTS: dict[str, Callable[[], Any]] = {
    "it changes the environment": lambda: dict(os.environ),
    "it draws a random number": random.getstate,
    "it starts a thread": lambda: sorted(sys._current_frames()),  # noqa: SLF001
    "it leaves a file or a socket open": _descriptors,
    "it handles signals": _handlers,
    "it changes the working directory": lambda: os.path.realpath("/proc/self/cwd"),
    "it changes the umask": _umask,
    "it changes the locale": lambda: locale.setlocale(locale.LC_ALL),
    "it changes the time zone": lambda: time.tzname,
    "it changes the logging": _loggers,
    "it changes a hook of Python's": lambda: (sys.excepthook, sys.displayhook, threading.excepthook, sys.gettrace()),
}


def _state() -> dict[str, Any]:
    """What the process is like, by what a file does that changes it."""
    return {what: look() for what, look in _ASPECTS.items()}


# -- the watch ---------------------------------------------------------------------------------------------


def _by_name(*tables: dict[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """The names of functions -> their modules -> what they do."""
    found: dict[str, dict[str, str]] = {}
    for table in tables:
        for module, (what, names) in table.items():
            for name in names.split():
                found.setdefault(name, {})[module] = what
    return found


class _Output(io.StringIO):
    """A standard stream that says that it is written to."""

    def __init__(self, is_written: Callable[[], None]) -> None:
        super().__init__()
        self._is_written = is_written

    def write(self, text: str) -> int:
        if text:
            self._is_written()
        return len(text)


class _Verdict:
    """Why what the file makes may not be shared."""

    def __init__(self) -> None:
        self.why_not = ""
        self.is_active = False  # now the file is executed
        self.has_refused = False
        self.is_logged = False  # by Airflow, which says less than its reason does

    def note(self, what: str, asker: types.FrameType | None = None) -> None:
        """Note why not; the first reason is the one that counts.

        :param asker: the user's code that does it.
        """
        if not self.why_not:
            self.why_not = what if asker is None else f"{what} ({_place(asker)})"

    def refuse(self, what: str, asker: types.FrameType | None) -> None:
        """Let it not happen. The first that is refused tells more than what was noted."""
        if not self.has_refused:
            self.why_not = ""
        self.note(what, asker)
        self.has_refused = True
        raise _RefusedError(what)


class _Events:
    """Judges what is about to happen."""

    def __init__(self, verdict: _Verdict, owners: Owners, files: _Files) -> None:
        self._verdict, self._owners, self._files = verdict, owners, files
        self._is_busy = False
        self.imported: dict[str, None] = {}  # the modules that code of the user's has asked for

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Something is about to happen; this is Python's audit hook, which can never be removed."""
        verdict = self._verdict
        if not verdict.is_active or self._is_busy:
            return
        if event in _ALLOWED:  # the profiler causes one whenever it looks at a frame
            return
        self._is_busy = True
        try:
            self._judge(event, args, sys._getframe(1))  # noqa: SLF001
        finally:
            self._is_busy = False

    def _judge(self, event: str, args: tuple[Any, ...], frame: types.FrameType) -> None:
        if self._verdict.has_refused and self._owners.asker(frame) is not None:
            raise _RefusedError  # the file has caught the first
        if event == "import":
            if self._owners.is_imported_by_user(frame):
                self.imported[args[0]] = None
        elif event == "open":
            self._open(args[0], args[2], frame)
        elif event in _LISTS:
            self._list(args[0], frame)
        elif not self._may_happen(event, frame):
            what = next((what for start, what in _EVENTS.items() if event.startswith(start)), f"it causes {event}")
            self._verdict.refuse(what, self._owners.asker(frame))

    def _may_happen(self, event: str, frame: types.FrameType) -> bool:
        if event == "sys.setprofile" and frame.f_code.co_filename == __file__:
            return True
        is_rare = event in _ALLOWED_AT_IMPORT or event.startswith(_ALLOWED_START_AT_IMPORT)
        return is_rare and self._owners.is_at_import(frame)

    def _open(self, path: Any, flags: Any, frame: types.FrameType) -> None:
        if (flags or 0) & _WRITES:
            self._verdict.refuse(_EVENTS["open"], self._owners.asker(frame))
        if isinstance(path, int):
            return
        name = os.fsdecode(path)
        if not name.startswith(("/proc/", "/sys/", "/dev/")):
            self._files.add(name)
        elif (asker := self._owners.asker(frame)) is not None:
            self._verdict.refuse(f"it reads {name}", asker)

    def _list(self, path: Any, frame: types.FrameType) -> None:
        """A directory is listed; Python's import does so to find modules, see :meth:`_Files.add_modules`."""
        if self._owners.is_importing(frame):
            return
        if isinstance(path, int):
            self._verdict.refuse("it lists a directory that it has open", self._owners.asker(frame))
        self._files.add("." if path is None else path)


class _Calls:
    """Judges what is called."""

    def __init__(self, verdict: _Verdict, owners: Owners) -> None:
        self._verdict, self._owners = verdict, owners
        of_process = {module: (_PROCESS, names) for module, names in _NOTED_OF_PROCESS.items()}
        self._noted, self._refused = _by_name(_NOTED, of_process), _by_name(_REFUSED)
        self._executed: dict[int, types.CodeType] = {}  # what of the user's code
        self._numpy_state = _numpy_state()
        self._is_loading = False  # numpy's random numbers

    def profile(self, frame: types.FrameType, event: str, arg: Any) -> None:
        """Something is called; this is Python's profiler.

        Python takes it off when it raises an exception, and asks for that with an audit event, which is refused.
        """
        if event in ("call", "c_call") and self._verdict.has_refused and self._owners.asker(frame) is not None:
            raise _RefusedError  # the file has caught the first
        if event == "c_call":
            name = arg.__name__
            if name in self._noted or name in self._refused:
                self._call_c(name, arg, frame)
        elif event == "call":
            code = frame.f_code
            if self._owners.of(code.co_filename) is _USERS:
                self._executed[id(code)] = code
            if code.co_qualname in _WATCHED_CALLS:
                self._call(code.co_qualname, frame)
            self._is_loading |= code.co_name == "<module>" and frame.f_globals.get("__name__") == _NUMPY_RANDOM
        elif self._is_loading and event == "return" and frame.f_globals.get("__name__") == _NUMPY_RANDOM:
            self._is_loading = False
            self._numpy_state = _numpy_state()

    def _call_c(self, name: str, function: Any, frame: types.FrameType) -> None:
        if _forgets_time(name, frame.f_globals.get("__name__", "")):
            return
        module = _module_of(function)
        noted = self._noted.get(name, {}).get(module)
        refused = self._refused.get(name, {}).get(module)
        if (noted or refused) and (asker := self._owners.asker(frame)) is not None:
            if refused:
                self._verdict.refuse(refused, asker)
            self._verdict.note(noted or "", asker)

    def _call(self, name: str, frame: types.FrameType) -> None:
        module, caller = frame.f_globals.get("__name__", ""), frame.f_back
        start, what = _MODULES.get(name, ("", ""))
        if what and module.startswith(start):
            asker = self._owners.asker(caller)
            if asker is not None or what != _SETS_UP_LOGGING:
                self._verdict.refuse(what, asker)
        elif name == _WARNS and module in ("warnings", "_py_warnings"):
            self._warn(caller)
        elif name in _LOGS and module.startswith(_LOGS[name]):
            local = frame.f_locals
            self._log(str(local.get("event") or getattr(local.get("record"), "msg", "")), caller)

    def _warn(self, caller: types.FrameType | None) -> None:
        """A warning would be shown; the bag of DAGs shows once more those that it has collected."""
        is_collected = caller is not None and caller.f_code.co_name == "process_file"
        if not is_collected and not self._owners.is_at_import(caller):
            self._verdict.note("it warns", self._owners.asker(caller))

    def _log(self, text: str, caller: types.FrameType | None) -> None:
        if text.startswith(_OWN_LINE) or _is_within(caller, (_WARNS,)):
            return
        asker = self._owners.asker(caller)
        if asker is None:
            self._verdict.is_logged = True
        else:
            self._verdict.note("it logs", asker)

    def end(self) -> None:
        """Judge what could not be seen."""
        if _numpy_state() != self._numpy_state:
            self._verdict.note(_CHANCE)
        if not _UNSEEN.isdisjoint(sys.modules) and any(map(_may_name_now, self._executed.values())):
            self._verdict.note("it may read the time")
        if any(map(_may_read_unseen, self._executed.values())):
            self._verdict.note("it may read files with a library that does not tell")


class _Watch:
    """Watches what executes a DAG file."""

    def __init__(self, parse: Callable[[], object], bundle_path: str) -> None:
        self._parse, self._bundle_path = parse, bundle_path
        self._verdict = _Verdict()
        self._owners = Owners(bundle_path)
        self._owners.are_installed(parse.__code__.co_filename if isinstance(parse, types.FunctionType) else "")
        self._files = _Files(self._owners)
        self._events = _Events(self._verdict, self._owners, self._files)
        self._calls = _Calls(self._verdict, self._owners)

    def run(self) -> Watched:
        """Execute the file."""
        note = self._verdict.note
        before = _state()
        result: Any = None
        has_ended = False
        with self._watching(), contextlib.suppress(_RefusedError, Exception):
            result = self._parse()
            has_ended = True
        if not has_ended or getattr(result, "import_errors", None):
            note("it cannot be imported")
        if self._verdict.is_logged:
            note("something is logged while it is executed")
        for what, now in _state().items():
            if now is not None and now != before[what]:
                note(what)
        self._calls.end()
        self._files.add_modules(self._events.imported)
        if self._files.has_zip:
            note("it is in a zip file, or reads one")
        if len(self._files.found) > _MAX_FILES:
            note(f"it depends on more than {_MAX_FILES} files")
        return Watched(self._verdict.why_not, self._files.found)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for put in (self._streams, self._environment, self._stats, _no_bytecode):
                stack.enter_context(put())
            sys.addaudithook(self._events.audit)
            self._verdict.is_active = True
            sys.setprofile(self._calls.profile)
            try:
                yield
            finally:
                self._verdict.is_active = False
                sys.setprofile(None)

    # What is put in the place of Python's own meanwhile.

    @contextlib.contextmanager
    def _streams(self) -> Iterator[None]:
        def is_written() -> None:
            frame = sys._getframe(2)  # noqa: SLF001
            if not _is_within(frame, _LOGS):
                self._verdict.note("it prints", self._owners.asker(frame))

        out, error = _Output(is_written), _Output(is_written)
        names = {"stdout": out, "__stdout__": out, "stderr": error, "__stderr__": error}
        before = {name: getattr(sys, name) for name in names}
        vars(sys).update(names)
        try:
            yield
        finally:
            vars(sys).update(before)
        if self._owners.keeps(out, error):
            self._verdict.note("it keeps a standard stream")

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        both: list[Any] = [os.environ, os.environb]  # which have one dictionary
        data = both[0]._data  # noqa: SLF001
        told = _Environment(data, self._is_read)
        for environment in both:
            environment._data = told  # noqa: SLF001
        try:
            yield
        finally:
            for environment in both:
                environment._data = data  # noqa: SLF001
            if dict(told.items()) != data:
                self._verdict.note("it changes the environment")

    def _is_read(self, name: Any) -> None:
        """Something reads an environment variable, or all of them."""
        text = None if name is None else os.fsdecode(name)
        if not self._verdict.is_active or (text is not None and not text.startswith(_TASK_VARIABLES)):
            return
        asker = self._owners.asker(sys._getframe(2))  # noqa: SLF001
        if asker is not None:
            self._verdict.note("it reads all of the environment" if text is None else f"it reads ${text}", asker)

    @contextlib.contextmanager
    def _stats(self) -> Iterator[None]:
        """Let it be seen which files are looked for; no event says so."""
        originals = {name: getattr(os, name) for name in ("stat", "lstat", "access", "readlink")}
        for name, original in originals.items():
            setattr(os, name, self._looking(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _looking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any, *args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)  # noqa: SLF001
            if not self._owners.is_importing(frame):
                self._files.look_for(path, wants_time=original is _stat and self._owners.wants_stat(frame))
            return original(path, *args, **kwargs)

        return look


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Let Python's imports write nothing."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _may_name_now(code: types.CodeType) -> bool:
    """Whether it may ask a library for the present time, by a method or as that of a string."""
    texts = {text.lower() for text in code.co_consts if isinstance(text, str)}
    return not texts.union(code.co_names).isdisjoint(_NOW)


def _may_read_unseen(code: types.CodeType) -> bool:
    return not _UNSEEN_READERS.isdisjoint(name.partition(".")[0] for name in code.co_names)


def _forgets_time(name: str, module: str) -> bool:
    """Whether nothing is left of the time: each record of the log has it, and Airflow logs its durations.

    The module that reads texts as dates asks for the names of the days with it.
    """
    is_airflow = module.startswith("airflow.") and not module.startswith(_PROVIDERS)
    return module in ("logging", "_strptime") or (is_airflow and name in _DURATIONS)


def _module_of(function: Any) -> str:
    """Whose a function in C is: a module, or what stands for a class."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, types.ModuleType):
        return owner.__name__
    if isinstance(owner, random.Random):
        return "random"
    if isinstance(owner, os.DirEntry):
        return "os.DirEntry"
    return _CLASS if isinstance(owner, type) else ""


def _is_within(frame: types.FrameType | None, names: Container[str]) -> bool:
    """Whether something happens in one of some functions, of which another part of the watch knows."""
    while frame is not None:
        if frame.f_code.co_qualname in names:
            return True
        frame = frame.f_back
    return False


def _place(frame: types.FrameType) -> str:
    name = frame.f_code.co_filename
    return f"{os.path.basename(name)}, line {frame.f_lineno}"
