"""What a user does with jobs on NFS, through two mounts: the tests of test_base_path, in a virtual machine."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.support import nfs, virtual_machine

_ROUND_SECONDS = 60.0  # of two managers, at most, several at a time


@pytest.mark.engine
@pytest.mark.parametrize("kind", nfs.KINDS)
def test_in_a_virtual_machine(kind: str) -> None:
    if shutil.which("rpc.nfsd") is None:
        pytest.skip("there is no server of NFS; see make virtual-machine")
    rounds = os.environ.get("ROUNDS", "1")
    virtual_machine.run_tests(
        "-n8",
        "tests/matrix/test_base_path.py",
        before=[sys.executable, "-m", "tests.support.nfs", kind],
        longest=virtual_machine.LONGEST + int(rounds) * _ROUND_SECONDS,
        ROUNDS=rounds,
    )
