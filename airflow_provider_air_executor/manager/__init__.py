"""The manager: one process per base path that runs the jobs there. Nothing here imports Airflow."""
