#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0: --dist loadgroup groups nothing, and says nothing about it.
#
# Expected: the four tests with @pytest.mark.xdist_group("one") run in one worker, as the documentation of pytest-xdist
# says of --dist loadgroup, and as they do with pytest 9.1.1.
# Seen: with pytest 9.2.0 each worker takes some of them. The worker of pytest-xdist appends "@one" to the attribute
# _nodeid of each item. The nodeid of pytest 9.2.0 is computed from another attribute (_id), so the controller never sees
# the suffix, and takes each test for a group of its own. There is no warning and no error: a fixture that the group was
# to share is made in every worker.
# Here: eight workers each started an Airflow, a Slurm and a Kubernetes cluster. tests/support/scheduling.py groups by a
# table of its own instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/test_group.py" <<'PYTHON'
import os, time
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(4))
def test_of_a_group(number):
    time.sleep(0.5)
    with open("workers", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PYTHON
python3 -m venv "$folder/venv"
cd "$folder"

workers() {  # of the four tests, with a version of pytest
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
  rm -f workers
  "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup >output 2>&1
  if grep -i warning output; then exit 1; fi
  sort -u workers | wc -l
}

for version in 9.1.1 9.2.0; do
  number=$(workers $version)
  echo "pytest $version, pytest-xdist 3.8.0: the group ran in $number worker(s)"
  if [ "$version" = 9.1.1 ]; then test "$number" = 1; else test "$number" = 2; fi
done
