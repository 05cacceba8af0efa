# The script of a task, with a template.
set -e
printf '"%s of {{ dag.dag_id }}"' "$AIR_EXECUTOR_TASK" > "$AIR_EXECUTOR_OUTPUT"
