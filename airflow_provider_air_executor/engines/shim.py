"""The shim of an attempt: the lines of ``sh`` that run its command and write its record, and what else engines share.

The shim, not the manager, writes the record. So a task goes on while no manager runs, and the next manager reads the
record, see :mod:`~airflow_provider_air_executor.jobs.attempt_record`. The shim creates the file exclusively before the
command starts: of two shims of the same attempt, started by two managers in a row, one ends without running it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from airflow_provider_air_executor.engines.protocol import Attempt, ResourceExhaustedError, SpawnError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import SPAWN, Record
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.system.environment import VARIABLE

# Found by the path and not by sh, which would take `echo` or `exit` for its own commands. Names of variables begin in a
# way of our own: if one were in the environment of the task, sh would hand on what we put in it.
FIND = """\
air_executor_find() {
case $1 in
*/*) ae_found=$1; [ -f "$ae_found" ] && [ -x "$ae_found" ]; return ;;
esac
set -f; IFS=:
for ae_directory in $PATH; do
ae_found=${ae_directory:-.}/$1
if [ -f "$ae_found" ] && [ -x "$ae_found" ]; then set +f; unset IFS; return 0; fi
done
return 1
}
"""
# run: $1 the record, $2 when the attempt starts, $3 the log, $4 the directory to run in or empty, then the command.
# Directory and command are looked at here and not by the manager, which must not wait for a file system that is away.
# Descriptor 1 is the record, and 3 the log. Descriptor 2 leads nowhere: the words of sh itself ("Killed", and where)
# do not belong in the log. So the command gets its descriptors in a process of its own, which then becomes the command.
# Where sh redirects them for a single command, dash says there that a signal has ended it, and each redirection costs
# sh five system calls. Those of sh itself are made once, by exec. With ``command`` before it, a file that cannot be
# opened does not end sh. What cd prints must not come into the record: it would where CDPATH leads it elsewhere, and if
# it were given a dash alone, which is no directory to it.
# Where sh is bash, it takes options (SHELLOPTS with errexit) and functions (one called echo) from the environment.
# The record is written through its descriptor, not by its name: if the job is removed and submitted again meanwhile,
# that name is the record of another run.
# Signals meant for the command's process group reach sh too: a trap that does nothing keeps it alive to write
# the record, and unlike an ignored signal it is not handed on to the command. A command that is to end before it has
# begun does not begin.
# Of a command that a signal has ended, some shells give 256 (ksh93) or 384 (yash) and its number, in place of 128.
# A shell that cannot fork ends by itself. One that a signal ends has a status of 128 and more (bash says 254 where it
# cannot fork), and what it has started may go on.
_TEMPLATE = """\
trap : HUP INT QUIT USR1 USR2 ALRM
ae_told=
trap 'ae_told=" told"' TERM
set -C
run() {
command exec </dev/null 3>>"$3" >"$1" || exit 97
%(begin)scommand echo "%(id)s $2 $AIR_EXECUTOR_RUN" || exit 97
case $4 in ?*) CDPATH= command cd -- "$4/." || {
command printf 'spawn the directory %%.4000s (field cwd) does not exist, or may not be entered%(there)s\n' "$4"
exit 126
} ;; esac
shift 4
case $ae_told in ?*) command echo 143; exit 143 ;; esac
case $1 in
*/*) ae_found=$1; [ -f "$1" ] && [ -x "$1" ] ;;
*) air_executor_find "$1" ;;
esac || {
ae_why="was not found in PATH=$PATH"
case $1 in */*) ae_why="was not found"; [ ! -e "$1" ] || ae_why="is not an executable file" ;; esac
command printf 'spawn command %%.1000s %%.4000s%(there)s\n' "$1" "$ae_why"
exit 127
}
shift
trap 'ae_code=$?; [ $ae_code -ge 128 ] && [ $ae_code != 254 ] || command echo "%(cannot_fork)s"' EXIT
ae_code=0
(exec %(through)s"$ae_found" "$@" >&3 2>&3 3>&-) || ae_code=$?
trap - EXIT
[ $ae_code -le 255 ] || ae_code=$((128 + ae_code %% 128))
command echo "$ae_code$ae_told"
%(used)scommand times
exit $ae_code
}
"""
# ae_find_peak PATTERN: the file that says how much memory at most the control group of this shell has had, in
# ae_peak_file, if the path of the group is like the pattern, so that nothing else is in it. Where it has none of its
# own, that of a group above it. Where groups are not mounted as usual, all mounts are read. ae_read_peak: what is in
# that file. Without `read`: in BusyBox 1.38, it does not return any more once a trap has caught a signal.
_PEAK = """\
ae_try_peak() {
ae_group=$2
while :; do
case $ae_group in $4) ;; *) return 1 ;; esac
ae_peak_file=$1$ae_group/$3
[ ! -r "$ae_peak_file" ] || return 0
ae_group=${ae_group%/*}
done
}
ae_try_mount() {
ae_pattern=$1 ae_root=$5 ae_point=$6
shift 6
case "$ae_root $*" in
"/ "*" - cgroup2 "*) ae_try_peak "$ae_point" "$ae_group_2" memory.peak "$ae_pattern" ;;
"/ "*" - cgroup "*memory*) ae_try_peak "$ae_point" "$ae_group_1" memory.max_usage_in_bytes "$ae_pattern" ;;
*) return 1 ;;
esac
}
ae_find_peak() {
ae_group_1= ae_group_2= ae_peak_file=
[ -r /proc/self/cgroup ] || return
set -f; IFS='
'
for ae_line in $(command cat /proc/self/cgroup); do
ae_line=${ae_line#*:}
case ${ae_line%%:*} in
"") ae_group_2=${ae_line#*:} ;;
memory | memory,* | *,memory | *,memory,*) ae_group_1=${ae_line#*:} ;;
esac
done
set +f; unset IFS
case "$ae_group_1 $ae_group_2" in *$1*) ;; *) return ;; esac
ae_try_peak /sys/fs/cgroup/memory "$ae_group_1" memory.max_usage_in_bytes "$1" && return
ae_try_peak /sys/fs/cgroup "$ae_group_2" memory.peak "$1" && return
set -f; IFS='
'
for ae_line in $(command cat /proc/self/mountinfo); do
unset IFS
ae_try_mount "$1" $ae_line && { set +f; return; }
done
set +f; unset IFS
ae_peak_file=
}
ae_read_peak() {
ae_peak=
[ -z "$ae_peak_file" ] || ae_peak=$(command cat "$ae_peak_file") || :
}
"""
_CANNOT_FORK = "no more processes could be started there (cannot fork)"
_LONGEST_THROUGH = 30_000  # bytes; a script is written into a pipe at once


def script_here(environment: Mapping[str, str]) -> str:
    """The lines that run a command on this machine, if it is given by its path; other ones need :data:`FIND` besides.

    The standard error of the shell that reads them must lead nowhere.

    :param environment: what the command is to inherit. A shell does not hand on what it has no word for, such as
        functions that bash has exported, so they come from the command line.
    """
    return _script("$$", through=_through(environment))


def script_elsewhere(identity: str, begin: str, group: str, environment: Mapping[str, str]) -> str:
    """The lines that run any command on another machine, in a shell whose standard error leads nowhere.

    :param identity: the shell expression of the number in the record that identifies the shim.
    :param begin: ``sh`` of the one that may run the command, before it says so in the record, which is ``$1``.
    :param group: the pattern of ``sh`` of the path of a control group in which nothing else is but the shim, what it
        runs, and what has run there before.
    :param environment: see :func:`script_here`.
    """
    begin = f'{begin}\nae_find_peak "{group}"\nae_read_peak\nae_peak_before=$ae_peak\n'
    used = 'ae_read_peak\n[ "$ae_peak" = "$ae_peak_before" ] || command echo "memory $ae_peak"\n'
    through = _through(environment)
    return FIND + _PEAK + _script(identity, through=through, begin=begin, there=" on '$(uname -n)'", used=used)


def _through(environment: Mapping[str, str]) -> str:
    """What runs a command with the variables that have no name of a shell; too many of them are left out."""
    unnamed = [f"{name}={value}" for name, value in environment.items() if not VARIABLE.fullmatch(name)]
    through = shlex.join(["/usr/bin/env", *unnamed]) + " " if unnamed else ""
    return through if len(through) <= _LONGEST_THROUGH else ""


def _script(identity: str, *, through: str = "", begin: str = "", there: str = "", used: str = "") -> str:
    values = {"id": identity, "begin": begin, "through": through, "there": there, "used": used}
    return _TEMPLATE % {**values, "cannot_fork": f"{SPAWN}{_CANNOT_FORK}"}


def could_not_fork(record: Record) -> bool:
    """Whether the shim could not fork to start its command."""
    return record.spawn_error == _CANNOT_FORK


def task_variables(attempt: Attempt, directory: str | None, output_path: str | None) -> dict[str, str]:
    """The environment variables that describe a task to itself.

    :param directory: that of its job; None if the task cannot see it.
    :param output_path: where it may leave a result; None if the variable is set elsewhere.
    """
    variables = {
        "AIR_EXECUTOR_JOB": attempt.job_name,
        "AIR_EXECUTOR_TASK": attempt.task_id,
        "AIR_EXECUTOR_ATTEMPT": str(attempt.number),
        "AIR_EXECUTOR_OUTPUT": output_path,
        "AIR_EXECUTOR_JOB_DIR": directory,
    }
    return {name: value for name, value in variables.items() if value is not None}


@contextlib.contextmanager
def preparing(engine: str) -> Iterator[None]:
    """Write what an engine is to run.

    :param engine: its name, for people.
    :raises ResourceExhaustedError: if it may be possible later.
    :raises SpawnError: if it is not.
    """
    try:
        yield
    except OSError as error:
        if error.errno in files.TRANSIENT:
            raise ResourceExhaustedError(error.strerror) from error
        raise SpawnError(f"what {engine} is to run cannot be written: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise SpawnError(f"an argument cannot be encoded: {error}") from error


def prepare_files(output_path: Path, log_path: Path) -> int:
    """Remove the result of an earlier run of a job that was reset by hand, and create the log where it is missing.

    :return: the bytes that are in the log already.
    :raises OSError: if that is not possible.
    """
    output_path.unlink(missing_ok=True)
    descriptor = files.open_log(log_path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def modified_at(path: str) -> datetime:
    """When a record was written last."""
    try:
        return datetime.fromtimestamp(os.stat(path).st_mtime, tz=UTC)
    except OSError:
        return utc_now()
