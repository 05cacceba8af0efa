"""The first lines of air-executor.pyz. Any Python 3 can read them, so that one which is too old can say so."""

import os
import shutil
import sys

LOWEST = (3, 11)
HIGHEST = (3, 14)  # for which there are compiled modules in it


def use_newer() -> None:
    """Go on in a newer Python if there is one beside this one; it does not come back then."""
    for minor in range(HIGHEST[1], LOWEST[1] - 1, -1):
        path = shutil.which(f"python3.{minor}")
        if path is not None:
            os.execv(path, [path, *sys.argv])  # noqa: S606 - no shell
    here = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"air-executor: Python {'.'.join(map(str, LOWEST))} or newer is needed; {sys.executable} is {here}")


if sys.version_info < LOWEST:
    use_newer()

import air_executor_unpack  # noqa: E402 - an older Python could not read it

air_executor_unpack.run()
