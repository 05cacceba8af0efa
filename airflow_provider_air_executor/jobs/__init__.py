"""The job filesystem: records, paths, publishing and watching. Nothing here imports Airflow."""
