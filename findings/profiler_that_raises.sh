#!/usr/bin/env bash
# Python takes a profiler off when it raises an exception, but asks the audit hooks for that first, and obeys them.
#
# Expected: after the function of sys.setprofile has raised an exception, nothing calls it any more, as the documentation of
# sys.settrace says of its like; audit hooks hear of calls that a program makes, and not of what the interpreter does by
# itself.
# Seen with Python 3.11 to 3.13: the interpreter raises the audit event sys.setprofile before it takes the profiler off. A
# hook that raises an exception for that event keeps it on, and the program gets the exception of the hook.
# Here: what watches a DAG file refuses each call after the first one, although the file has caught the exception
# (parse_watch.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/profiler.py" <<'PYTHON'
import sys

keeps, calls = False, []


def hook(event, _args):
    if event == "sys.setprofile" and keeps:
        raise RuntimeError("it stays")


def profiler(_frame, event, function):
    if event == "c_call" and function is abs:
        calls.append(function.__name__)
        raise ValueError("refused")


def call_three_times():
    """How often the profiler has been called, and which exceptions the program got."""
    calls.clear()
    caught = []
    for _ in range(3):
        try:
            abs(-1)
        except Exception as error:
            caught.append(type(error).__name__)
    return len(calls), caught


sys.addaudithook(hook)
sys.setprofile(profiler)
usual = call_three_times()
sys.setprofile(profiler)
keeps = True
kept = call_three_times()
keeps = False
sys.setprofile(None)
print(f"Python {sys.version.split()[0]}: the profiler that raises is called {usual[0]} time, the program gets {usual[1]}; "
      f"with a hook that refuses sys.setprofile {kept[0]} times, and the program gets {kept[1]}")
sys.exit((usual, kept) != ((1, ["ValueError"]), (3, ["RuntimeError"] * 3)))
PYTHON
python3 "$work/profiler.py"
