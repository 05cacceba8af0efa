# The rest of the first process of a container with several attempts, after begin.sh. Each of them follows it, as a
# function `task` and a call of `part` with its number in the batch and its token. Two more variables are set before:
# `ae_grace`, the seconds between SIGTERM and SIGKILL, and `ae_token`, that of the Pod.

# The shell kills an attempt that does not end by SIGTERM. Kubernetes would kill the shell too, which must still print the
# end of the attempt, and that the next ones have not begun.
ae_kill_later() { (sleep $ae_grace; kill -KILL $ae_child) & }
printf '\000air-executor %s output\n' $ae_token
frame() { printf '\000air-executor %s\n' "$*"; }

# An attempt is begun in a process of its own, which becomes the command: it has its own directory and variables.
start() {
if [ -n "$1" ]; then CDPATH= cd -- "$1/." || { frame $AIR_EXECUTOR_RUN spawn directory "$1"; exit 126; }; fi
shift
air_executor_find "$1" || { unset IFS; frame $AIR_EXECUTOR_RUN spawn command "$1"; exit 127; }
shift
exec "$ae_found" "$@"
}
# What the shell and its children have used until now: the four words that `times` prints, in ae_times, and the most
# memory. Those of an attempt are what there is more after it than before.
ae_use() {
ae_times=
command times >"$ae_result.times" && ae_times=$(ae_words "$ae_result.times")
ae_find_peak
}
leave() {
echo ${ae_last:-0} >$ae_say
frame $1 left
sleep 1
exit 143
}
part() {
if [ -n "$ae_ended" ]; then leave $2; fi
ae_remove_result
ae_use
ae_peak_before=$ae_peak
set -- $1 $2 $(date -u +%s) "$ae_times"
echo $1 >$ae_say || exit 97
frame $2 begin $3 $4
if [ -n "$ae_ended" ]; then leave $2; fi
{ if [ -n "$ae_ended" ]; then exit 143; fi; export AIR_EXECUTOR_RUN=$2; task; } </dev/null 2>&1 &
ae_child=$!
ae_wait
ae_use
if [ "$ae_peak" = "$ae_peak_before" ]; then ae_peak=; fi
set -- $1 $2 $ae_code $ae_size $(date -u +%s)
frame $2 end $3 $4 $ae_told $5${ae_times:+ $ae_times${ae_peak:+ $ae_peak}}
if [ $ae_size -gt 0 ]; then cat "$ae_result"; fi
frame $2 done
ae_last="$1 $3 $4 $5 $ae_told"
echo $ae_last >$ae_say
if [ $ae_size -gt 0 ] && [ $ae_size -le $ae_short ]; then cat "$ae_result" >>$ae_say; fi
}
echo 0 >$ae_say
