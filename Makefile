# Needs Python 3.11 or newer and make; everything else is installed into .venv.
#   make demo    a real Airflow runs an example DAG, in a temporary home
#   make up      a real Airflow with its UI, until Ctrl-C, at port 8080 if that is free, or at UI_PORT
#   make test    all tests; tests/README.md lists their needs, and explains how to run some of them
#   make test-fast           tests that need no server, in a minute
#   make test-slow-machine   a tier beside processes that keep the machine busy (TIER=test-fast)
#   make test-errno          system calls that fail, in EXAMPLES=2000 orders
#   make fuzz                files of jobs, and requests, that hold anything, in EXAMPLES=8000 mixtures
#   make coverage            all tests, and the lines and branches that they reach
#   make check   ruff, mypy, import-linter, how large classes and functions are, and make docs
#   make docs    the documentation as web pages, in docs/_build/html; make reference writes the pages made from the code
#   make pyz     dist/air-executor.pyz: the manager, its server and its command line in one file, without Airflow
#   make virtual-machine   a kernel that runs as a process, for the tests of NFS and control groups, once
#   make matrix   the tests on other shells, file systems, Pythons, Slurm: all rows, or ROW='sh-* xfs'; make matrix-list
#   make kubernetes   builds a small Kubernetes cluster for the tests, once, and starts it, until Ctrl-C

PYTHON ?= python3
AIRFLOW ?= 3.3.2
VENV ?= .venv
UI_PORT ?= 0
# Processes of pytest. Most tests wait for most of their time, so more than there are cores.
WORKERS ?= 6
FAST = $(IN_MEMORY) $(BIN)/python -m pytest --hypothesis-profile=fast -m "not (airflow or browser or embedded or engine or postgresql)" $(PYTEST_ARGS)
TIER ?= test-fast
EXAMPLES ?= 2000
ROW ?= *
# Where there is room in memory for its files, the speed of the disk does not matter.
IN_MEMORY = $(shell test -w /dev/shm && test `df --output=avail /dev/shm | tail -1` -gt 1000000 && echo TMPDIR=/dev/shm)
CONSTRAINTS = constraints/airflow-$(AIRFLOW).txt
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(AIRFLOW)
DOCS_READY = $(VENV)/.docs-ready-$(AIRFLOW)

# Without compiled modules, importing Airflow takes more than twice as long.
export UV_COMPILE_BYTECODE = 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo up test test-fast test-slow-machine test-errno fuzz test-lowest coverage postgresql chromium slurm sshd network nginx bindfs virtual-machine kubernetes kubernetes-build matrix matrix-list matrix-page debootstrap pyz vendor check docs reference format benchmark clean

demo: $(READY)
	$(BIN)/python demo.py

up: $(READY)
	@exec $(BIN)/python demo.py --up --port $(UI_PORT)

test: $(READY) postgresql chromium slurm sshd network nginx bindfs
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# The tests of the provider import Airflow, which takes as long as all of them: one process is enough for that.
test-fast: $(READY)
	@provider=$$(mktemp); second=; trap 'kill $$second 2>/dev/null; rm -f $$provider' EXIT; trap 'exit 130' INT TERM; \
	  $(FAST) tests/provider >$$provider 2>&1 & second=$$!; status=0; \
	  $(FAST) -n $(WORKERS) tests/api tests/jobs tests/engines tests/manager || status=$$?; \
	  wait $$second || status=$$?; second=; cat $$provider; exit $$status

test-slow-machine: $(READY)
	$(BIN)/python -m tests.support.slow_machine $(MAKE) --no-print-directory $(TIER)

test-errno: $(READY)
	EXAMPLES=$(EXAMPLES) $(IN_MEMORY) $(BIN)/python -m pytest tests/manager/test_errno.py $(PYTEST_ARGS)

fuzz: EXAMPLES = 8000
fuzz: $(READY)
	EXAMPLES=$(EXAMPLES) $(IN_MEMORY) $(BIN)/python -m pytest tests/manager/test_fuzz.py tests/server/test_fuzz_api.py $(PYTEST_ARGS)

coverage: $(READY) postgresql chromium slurm sshd network nginx bindfs
	rm -f .coverage .coverage.*
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/python -m coverage run -m pytest -n $(WORKERS) $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The crash tests start a server of their own; Debian's package would start one for the whole machine otherwise.
postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { \
	  mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf && \
	  apt-get update -qq && apt-get install -y -qq postgresql >/dev/null; }

# The tests of the pages use a browser.
chromium:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }

# The tests of the engine slurm start clusters of two nodes of their own, and a database for one of them: MariaDB's core
# packages have no service that would be started for the whole machine, and that of slurmdbd waits for its configuration.
slurm:
	@test -x /usr/sbin/slurmctld || { apt-get update -qq && apt-get install -y -qq slurm-wlm munge >/dev/null; }
	@test -x /usr/sbin/slurmdbd && test -x /usr/sbin/mariadbd && test -x /usr/bin/my_print_defaults || { \
	  apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends slurmdbd mariadb-server-core mariadb-client-core >/dev/null; }

# The tests of SSH start servers of their own; the file keeps Debian's package from starting one for the whole machine.
sshd:
	@test -x /usr/sbin/sshd || { mkdir -p /etc/ssh && touch /etc/ssh/sshd_not_to_be_run && \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends openssh-server >/dev/null; }

# The tests of a manager on another machine put a cable between two network namespaces.
network:
	@command -v ip >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2 >/dev/null; }

# The server is tested behind a proxy, too. Debian's package would start it as a service of the whole machine.
nginx:
	@test -x /usr/sbin/nginx || command -v nginx >/dev/null || { apt-get update -qq && \
	  RUNLEVEL=1 apt-get install -y -qq --no-install-recommends nginx-light >/dev/null; }

# A file system that keeps what it knows of a directory, as those of networks do, and one that is an object store's.
bindfs:
	@{ command -v bindfs && command -v rclone; } >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends bindfs fuse3 rclone >/dev/null; }

# The tests of NFS run in a virtual machine, and those of control groups of version 2, where this one has version 1.
virtual-machine:
	@tests/support/build_virtual_machine.sh

# The tests of the engine kubernetes run where this has been built.
kubernetes-build:
	@tests/support/build_kubernetes.sh

kubernetes: kubernetes-build $(READY)
	@exec $(BIN)/python -m tests.support.kubernetes_cluster

# Systems of Debian's packages, in the user's cache. A row that ends writes its line of docs/where-it-runs.md.
matrix: $(READY) debootstrap network
	@set -f; exec $(BIN)/python -m tests.matrix $(ROW)

matrix-list: $(READY)
	@$(BIN)/python -m tests.matrix --list

# The page again, after a change of the rows.
matrix-page: $(READY)
	@$(BIN)/python -m tests.matrix --page

debootstrap:
	@command -v debootstrap >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends debootstrap >/dev/null; }

# The lowest supported Airflow, in an environment of its own.
test-lowest:
	$(MAKE) test AIRFLOW=3.2.2 VENV=.venv-lowest PYTEST_ARGS="tests/api tests/server tests/provider tests/acceptance $(PYTEST_ARGS)"

check: $(READY) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.support.house

# Strict: a warning is an error. It reads no other host.
docs: $(DOCS_READY)
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "file://$(CURDIR)/docs/_build/html/index.html"

reference: $(READY)
	$(BIN)/python docs/generate.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)
	$(BIN)/python benchmarks/manager.py
	$(BIN)/python benchmarks/waiting.py
	$(BIN)/python benchmarks/executor.py
	$(BIN)/python benchmarks/triggers.py

# Debian splits venv off from Python; it is installed where it is missing and may be.
$(BIN)/uv: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) uv
	@touch $@

$(READY): $(BIN)/uv pyproject.toml $(CONSTRAINTS) tests/support/in_tests.pth
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[dev]'
	@cp tests/support/in_tests.pth `$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`
	$(BIN)/python -m compileall -q airflow_provider_air_executor
	@$(BIN)/python -m pytest --collect-only -qq tests/jobs tests/engines tests/manager >/dev/null || true  # or each worker compiles them
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[docs]'
	@touch $@

# Versions are those of the constraints; what is compiled comes from an index, for all Pythons and machines.
pyz: $(READY)
	$(BIN)/python pyz/build.py --constraints $(CONSTRAINTS)

# The libraries of the pages, as their packages have them; needs npm. The result is committed, so only this target needs npm.
vendor:
	$(PYTHON) vendor.py

clean:
	rm -rf .venv .venv-lowest .venv-benchmark docs/_build dist
