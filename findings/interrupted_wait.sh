#!/usr/bin/env bash
# A trapped signal that interrupts `wait` gives 1 in ksh93u+m, as if the child had ended with 1.
#
# Expected: a status above 128 in each shell, 128 and the number of the signal: POSIX asks `wait` for more than 128 if a
# signal with a trap interrupts it, and a second `wait` for the child's own status.
# Seen with ksh93u+m 1.0.4 of Debian 12: 1, while the child goes on, and its own status from the second `wait`. dash 0.5.12,
# bash 5.2, mksh 59c and yash 2.52 give 143, 143, 143 and 399: yash adds 384. So a status of at most 128 does not say that
# the child has ended.
# Here: the first process of a container took such a 1 for the exit code of its task where /bin/sh is ksh93. It asks
# whether the child is still there (engines/kubernetes/shim/begin.sh).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq ksh93u+m=1.0.4-3 dash=0.5.12-2 bash=5.2.15-2+b13 mksh=59c-28+deb12u1 yash=2.52-2 2>/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
line='trap : TERM
(sleep 2; exit 7) &
child=$!
(sleep 0.5; kill -TERM $$) &
wait $child; first=$?
if kill -0 $child 2>/dev/null; then there=yes; else there=no; fi
wait $child
echo "$first $there $?"'
declare -A expected=([dash]="143 yes 7" [bash]="143 yes 7" [mksh]="143 yes 7" [yash]="399 yes 7" [ksh93]="1 yes 7")
for name in dash bash mksh yash ksh93; do
  path=$(find root -path "*bin/$name" -type f | head -n 1)
  found=$("$path" -c "$line")
  echo "$name: first wait, child still there, second wait: $found"
  [ "$found" = "${expected[$name]}" ]
done
