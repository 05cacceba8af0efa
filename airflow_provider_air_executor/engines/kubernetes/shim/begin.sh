#!/bin/sh
# How the first process of a container begins. Before this, the following variables are set:
#   ae_say      where a container leaves its termination message
#   ae_results  where tasks leave their results
#   ae_attached  where the files attached to its job are mounted, if it gets some
#   ae_short    the size in bytes of a result that the message can hold

# Kubernetes sends a signal to the first process alone, which hands it on to all of its group as SIGTERM. It is SIGTERM,
# or the STOPSIGNAL of the image: SIGINT, SIGQUIT, or 37, which is SIGRTMIN+3 (with others, a task may mean its own
# group). Meanwhile sh ignores SIGTERM: it would interrupt the next `wait`. The messages of sh itself ("Killed") do not
# belong in the log.
exec 2>/dev/null
ae_ended=
ae_end() {
trap ae_hit=1 INT QUIT
command trap ae_hit=1 37
trap '' TERM
ae_ended=1 ae_hit=1
kill -TERM 0
trap ae_hit=1 TERM
ae_kill_later
}
ae_kill_later() { :; }
trap ae_end TERM INT QUIT
command trap ae_end 37
trap ae_hit=1 HUP USR1 USR2 ALRM

if [ ! -w "$ae_results" ]; then export AIR_EXECUTOR_OUTPUT="${TMPDIR:-/tmp}/${AIR_EXECUTOR_OUTPUT##*/}"; fi
ae_result=$AIR_EXECUTOR_OUTPUT

# A signal interrupts sh while it waits. The status of `wait` then may not be the exit code of the command but 128 and
# the signal (1 of ksh93), so it is called again. If it was the exit code, sh does not know that any more (127, or -1 of
# bash). That is not to be taken for a command that ends so after the signal, which is still there when `wait` is
# interrupted.
# Of a command that a signal has ended, some shells give 256 (ksh93) or 384 (yash) and its number, in place of 128.
# `ae_told` is whether the container got a signal while the command ran. `ae_size` is the size of its result.
ae_wait() {
ae_gone=
while :; do
ae_hit=
wait $ae_child
ae_now=$?
if [ $ae_now -lt 0 ]; then break; fi
if [ $ae_now = 127 ] && [ -n "$ae_gone" ]; then break; fi
ae_code=$ae_now
if [ -z "$ae_hit" ]; then break; fi
ae_gone=
kill -0 $ae_child || ae_gone=1
done
if [ $ae_code -gt 255 ]; then ae_code=$((128 + ae_code % 128)); fi
ae_told=${ae_ended:-0}
ae_size=0
if [ -s "$ae_result" ]; then ae_size=$(($(wc -c <"$ae_result"))); fi
}
ae_remove_result() { if [ -e "$ae_result" ]; then rm -f "$ae_result"; fi; }

# The four words that `times` prints, and that are in a file: what the shell and its children have used. After a signal,
# `read` would never return in BusyBox 1.38.
ae_words() { echo $(cat "$1"); }

# The most memory that the container has had, if it sees its own control group there, and not that of the whole machine.
ae_find_peak() {
ae_peak=
if [ -r /sys/fs/cgroup/memory.peak ]; then ae_peak=$(cat /sys/fs/cgroup/memory.peak); fi
if [ ! -r /sys/fs/cgroup/memory/memory.max_usage_in_bytes ] || [ -e /sys/fs/cgroup/memory/release_agent ]; then return; fi
ae_peak=$(cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes)
}
