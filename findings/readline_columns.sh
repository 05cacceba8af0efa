#!/usr/bin/env bash
# Importing readline gives COLUMNS and LINES to the children of a Python, and os.environ does not show them.
#
# Expected: a child that subprocess.run starts without env= has the variables that os.environ has, no others.
# Seen with Python 3.11 and GNU readline 8.2, without any terminal: after `import readline` each child has COLUMNS=80 and
# LINES=24. Readline calls setenv in the C library (rl_change_environment), of which os.environ, a copy made at the start,
# knows nothing. pytest 9.1.1 imports readline by itself. A child that asks for its width, and wants 1,000 columns where
# there is no terminal (shutil.get_terminal_size), gets 80.
# Here: `air-executor status` cut its lines into a pipe when a test, or an IPython, ran it. COLUMNS together with LINES
# does not count into a pipe now (manager/cli/display.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset COLUMNS LINES
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.1.1
cat >"$work/test_child.py" <<'PYTHON'
import os
import subprocess
import sys

WIDTH = "import shutil; print(shutil.get_terminal_size(fallback=(1000, 24)).columns)"


def test_child():
    names = ("COLUMNS", "LINES")
    child = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    width = subprocess.run([sys.executable, "-c", WIDTH], capture_output=True, text=True, check=True).stdout
    print("os.environ:", {name: os.environ.get(name) for name in names})
    print("a child's environment:", sorted(line for line in child.splitlines() if line.startswith(names)))
    print("the width that a child finds:", width.strip())
    assert not any(name in os.environ for name in names)
    assert "COLUMNS=80" in child and "LINES=24" in child
    assert int(width) == 80
PYTHON
cd "$work"
before=$(venv/bin/python -c 'import subprocess; print(subprocess.run(["env"], capture_output=True, text=True).stdout)' </dev/null)
if grep -q ^COLUMNS <<<"$before"; then echo "COLUMNS is there without readline"; exit 1; fi
venv/bin/python -m pytest -q -s -p no:cacheprovider test_child.py </dev/null
