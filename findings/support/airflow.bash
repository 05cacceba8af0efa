# An Airflow of its own in a temporary folder, for the scripts beside this folder: source it, write DAG files into
# $work/dags and modules into $work/modules, and call start_airflow.
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
cd "$work"
mkdir -p home dags modules

install_airflow() { # VERSION
  python3 -m venv venv
  venv/bin/pip install --quiet --disable-pip-version-check uv==0.9.11
  VIRTUAL_ENV=$work/venv UV_COMPILE_BYTECODE=1 venv/bin/uv pip install --quiet "apache-airflow==$1"
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  export AIRFLOW_HOME=$work/home PYTHONPATH=$work/modules PATH=$work/venv/bin:$PATH
  export AIRFLOW__CORE__DAGS_FOLDER=$work/dags AIRFLOW__CORE__LOAD_EXAMPLES=False
  export AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION=False AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS=True
  export AIRFLOW__API__PORT=$port AIRFLOW__CORE__EXECUTION_API_SERVER_URL=http://127.0.0.1:$port/execution/
  export AIRFLOW__API__WORKERS=1 AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT=300 # a busy machine takes more than 5 s
  AIRFLOW__API_AUTH__JWT_SECRET=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
  AIRFLOW__CORE__FERNET_KEY=$(venv/bin/python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())')
  export AIRFLOW__API_AUTH__JWT_SECRET AIRFLOW__CORE__FERNET_KEY
  touch home/airflow.cfg
}

start_airflow() {
  airflow db migrate >migrate.out 2>&1
  for component in api-server scheduler dag-processor triggerer; do
    airflow $component >$component.out 2>&1 &
    pids+=($!)
  done
  triggerer=$! # the last one
}

wait_for() { # COMMAND..., up to five minutes
  for _ in $(seq 600); do
    if "$@" 2>/dev/null; then return; fi
    sleep 0.5
  done
  echo "it did not happen: $*"
  tail -n 5 ./*.out
  exit 1
}
