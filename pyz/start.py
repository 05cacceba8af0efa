"""Runs a module of the package that is beside this file: ``python -P air_executor_start.py MODULE ARGUMENT...``.

So processes that air-executor.pyz starts find the package, and what these start finds nothing of it.
"""

import os
import runpy
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
