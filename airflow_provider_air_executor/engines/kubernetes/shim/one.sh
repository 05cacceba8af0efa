# The rest of the first process of a container with one attempt, after begin.sh. Its arguments are the directory to run
# in (or nothing) and the command.
# The termination message is `spawn` and why the command could not be started, or `end`, the size of the result, whether
# the container got SIGTERM while it ran, what it has used, and the result itself if it is short. What was used are the
# four words that `times` prints, which are read from the file of that message, and the most memory, if that is known. The result follows the output too, behind
# a marker, since it may be long, or be cut in the message. The marker is always printed, so that the manager sees whether
# a container runtime has lost the end of the output, as some versions do; it does not begin with a newline, so that the
# last line of the output need not be held back. Another line is printed first, so that the manager sees whether a node has
# thrown away the beginning.
# The files attached to its job are copied before that, for this user alone: the manager empties the Secret then.
ae_copies=
if [ -d "$ae_attached" ]; then
ae_copies=${ae_result%.json}
export AIR_EXECUTOR_ATTACHED="$ae_copies"
(umask 077; mkdir "$ae_copies" && cp "$ae_attached"/* "$ae_copies") || ae_no_copies="spawn the files attached to its job \
cannot be copied to $ae_copies"
fi
printf '\000air-executor %s output\n' $AIR_EXECUTOR_RUN
if [ -n "$ae_no_copies" ]; then echo "$ae_no_copies" >$ae_say; exit 126; fi
ae_no_directory="spawn the directory $1 (field cwd) does not exist in its Pod"
if [ -n "$1" ]; then CDPATH= cd -- "$1/." || { echo "$ae_no_directory" >$ae_say; exit 126; }; fi
shift
air_executor_find "$1" || { printf 'spawn command %s was not found in its Pod\n' "$1" >$ae_say; exit 127; }
shift
set -- "$ae_found" "$@"
{ if [ -n "$ae_ended" ]; then exit 143; fi; exec "$@"; } </dev/null 2>&1 &
ae_child=$!
ae_wait
printf '\000air-executor %s\n' $AIR_EXECUTOR_RUN
command times >$ae_say
ae_times=$(ae_words $ae_say)
ae_find_peak
echo "end $ae_size $ae_told $ae_times${ae_peak:+ $ae_peak}" >$ae_say
if [ $ae_size -gt 0 ]; then cat "$ae_result"; fi
if [ $ae_size -gt 0 ] && [ $ae_size -le $ae_short ]; then cat "$ae_result" >>$ae_say; fi
ae_remove_result
if [ -n "$ae_copies" ]; then rm -rf "$ae_copies"; fi
exit $ae_code
