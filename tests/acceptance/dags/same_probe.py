"""What a task sees of its process, as data that can be compared. A module of the user's own, beside the DAG file."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import ctypes
import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

# The PR_GET_... of prctl(2): those that return a value, and those that write it.
_PRCTL = {"dumpable": 3, "keep capabilities": 7, "no new privileges": 39}
_PRCTL_BY_POINTER = {"parent death signal": 2, "subreaper": 37}


def look() -> dict[str, Any]:
    """All of it, flat: ``section/name`` and a value of JSON."""
    found: dict[str, Any] = {}
    for section, see in _SECTIONS.items():
        for name, value in see().items():
            found[f"{section}/{name}"] = value
    return found


def draw() -> dict[str, Any]:
    """What must be another one in each task."""
    drawn = {"random": random.random(), "uuid4": str(uuid.uuid4()), "tempfile": next(tempfile._get_candidate_names())}
    if "numpy.random" in sys.modules:
        drawn["numpy"] = float(sys.modules["numpy.random"].rand())
    return drawn


def _called(value: Any) -> str:
    """A name for a function, a class, or another object, without an address."""
    if value is None or isinstance(value, str | int | float):
        return str(value)
    inner = getattr(value, "__func__", value)
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    if module and name:
        return f"{module}.{name}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _environment() -> dict[str, Any]:
    return dict(os.environ)


def _modules() -> dict[str, Any]:
    here = str(Path(__file__).parent)
    users = {
        name: str(module.__file__)
        for name, module in list(sys.modules.items())
        if str(getattr(module, "__file__", "") or "").startswith(here)
    }
    main = sys.modules["__main__"]
    return {**users, "__main__": f"{main.__name__} {getattr(main, '__file__', None)}"}


def _python() -> dict[str, Any]:
    return {
        "path": sys.path,
        "meta_path": [_called(finder) for finder in sys.meta_path],
        "path_hooks": [_called(hook) for hook in sys.path_hooks],
        "flags": str(sys.flags),
        "warnoptions": sys.warnoptions,
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "dont_write_bytecode": sys.dont_write_bytecode,
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "trace": [_called(sys.gettrace()), _called(sys.getprofile())],
        "excepthook": _called(sys.excepthook),
        "unraisablehook": _called(sys.unraisablehook),
        "displayhook": _called(sys.displayhook),
        "breakpointhook": _called(sys.breakpointhook),
        "threading.excepthook": _called(threading.excepthook),
        "atexit": atexit._ncallbacks(),
        "faulthandler": faulthandler.is_enabled(),
        "hash": os.environ.get("PYTHONHASHSEED"),
        "gc": [gc.isenabled(), gc.get_threshold(), [_called(callback) for callback in gc.callbacks]],
        "decimal": str(decimal.getcontext()),
        "socket timeout": socket.getdefaulttimeout(),
        "tempfile.tempdir": tempfile.tempdir,
        "event loop policy": _called(asyncio.get_event_loop_policy()),
        "context variables": sorted(variable.name for variable in contextvars.copy_context()),
    }


def _warnings() -> dict[str, Any]:
    filters = [
        [action, getattr(message, "pattern", None), category.__name__, getattr(module, "pattern", None), line]
        for action, message, category, module, line in warnings.filters
    ]
    return {"filters": filters, "showwarning": _called(warnings.showwarning), "format": _called(warnings.formatwarning)}


def _multiprocessing() -> dict[str, Any]:
    process = multiprocessing.current_process()
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "process": f"{type(process).__name__} {process.name} daemon={process.daemon}",
        "parent": str(multiprocessing.parent_process() is not None),
        "children": len(multiprocessing.active_children()),
    }


def _threads() -> dict[str, Any]:
    return {
        "python": sorted(thread.name for thread in threading.enumerate()),
        "main is the main one": threading.current_thread() is threading.main_thread(),
        "native": len(os.listdir("/proc/self/task")),
    }


def _signals() -> dict[str, Any]:
    found = {number.name: _called(signal.getsignal(number)) for number in signal.Signals}
    status = Path("/proc/self/status").read_text()
    masks = dict(re.findall(r"^(Sig(?:Blk|Ign|Cgt)):\s*(\w+)", status, re.MULTILINE))
    wakeup = signal.set_wakeup_fd(-1)
    if wakeup != -1:
        signal.set_wakeup_fd(wakeup)
    timers = [
        signal.getitimer(which) != (0.0, 0.0)
        for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    ]
    return {**found, **masks, "wakeup": wakeup, "timers": timers}


def _descriptors() -> dict[str, Any]:
    found: list[tuple[int, str]] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # that of the directory itself
            continue
        kind = re.sub(r":\[\d+\]$", "", target)
        inherited = "inherited" if os.get_inheritable(int(name)) else "not inherited"
        found.append((int(name), f"{kind} {inherited}"))
    standard = {f"standard {number}": kind for number, kind in found if number < 3}
    return {**standard, "others": sorted(kind for number, kind in found if number > 2)}


def _streams() -> dict[str, Any]:
    found = {}
    for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"):
        stream = getattr(sys, name)
        facts = ("encoding", "errors", "line_buffering", "write_through", "newlines", "mode", "closed")
        found[name] = [_called(type(stream)), *(str(getattr(stream, fact, None)) for fact in facts)]
    return found


def _process() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    libc = ctypes.CDLL(None)
    asked = {name: libc.prctl(option, 0, 0, 0, 0) for name, option in _PRCTL.items()}
    for name, option in _PRCTL_BY_POINTER.items():
        value = ctypes.c_int(0)
        libc.prctl(option, ctypes.byref(value), 0, 0, 0)
        asked[name] = value.value
    status = Path("/proc/self/status").read_text()
    return {
        **asked,
        "umask": oct(umask),
        "cwd": os.getcwd(),
        "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "capabilities": re.findall(r"^Cap\w+:\s*\w+", status, re.MULTILINE),
        "seccomp": re.findall(r"^Seccomp\w*:\s*\w+", status, re.MULTILINE),
        "nice": os.nice(0),
        "scheduling": [os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))],
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "control groups": Path("/proc/self/cgroup").read_text(),
        "limits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"
        },
        "leads its group": os.getpgrp() == os.getpid(),
        "leads its session": os.getsid(0) == os.getpid(),
        "its supervisor leads its session": os.getsid(0) == os.getppid(),
        "terminal": os.path.exists("/dev/tty") and _has_terminal(),
        "title": Path("/proc/self/cmdline").read_bytes().decode().replace("\0", " ").strip(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "time slack": Path("/proc/self/timerslack_ns").read_text(),
    }


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _locale() -> dict[str, Any]:
    return {
        "all": locale.setlocale(locale.LC_ALL),
        "encoding": [
            locale.getpreferredencoding(do_setlocale=False),
            locale.getencoding(),
            sys.getfilesystemencoding(),
        ],
        "time zone": [time.tzname, time.timezone],
    }


def _logging() -> dict[str, Any]:
    found: dict[str, Any] = {"raiseExceptions": logging.raiseExceptions, "disabled": logging.root.manager.disable}
    for name in (
        "",
        "airflow",
        "airflow.task",
        "airflow.processor",
        "sqlalchemy.engine",
        "httpx",
        "py.warnings",
        "mine",
    ):
        logger = logging.getLogger(name)
        found[name or "root"] = {
            "level": logger.level,
            "propagates": logger.propagate,
            "handlers": [f"{_called(type(handler))} {handler.level}" for handler in logger.handlers],
            "filters": [_called(type(rule)) for rule in logger.filters],
        }
    return found


_SECTIONS = {
    "environment": _environment,
    "modules": _modules,
    "python": _python,
    "warnings": _warnings,
    "multiprocessing": _multiprocessing,
    "threads": _threads,
    "signals": _signals,
    "descriptors": _descriptors,
    "streams": _streams,
    "process": _process,
    "locale": _locale,
    "logging": _logging,
}
