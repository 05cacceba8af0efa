"""``python -m airflow_provider_air_executor.manager.cli``."""

from airflow_provider_air_executor.manager.cli import main

if __name__ == "__main__":
    main(prog_name="air-executor")
