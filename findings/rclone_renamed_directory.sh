#!/usr/bin/env bash
# With rclone mount, a file reads as empty, without an error, for seconds after its directory was renamed.
#
# Expected: the content that was written, as before the rename.
# Seen with rclone 1.60.1 of Debian 12, a mount of a local directory: with `full`, `cat` ends with 0 and prints nothing,
# though `ls` shows the size; with `writes` it says "Input/output error". Some seconds later (--vfs-write-back, 5 s) it has
# its content. With `off` it has it at once, but files cannot be appended to.
# Here: a job is published by the rename of its directory. Its state was read as empty, and each job ended as invalid. A
# manager now tries that in its base path, and does not start there (jobs/base_path_check.py).
set -euo pipefail
work=$(mktemp -d)
mounted=
clean() {
  if [ -n "$mounted" ]; then fusermount -uz "$work/mount" || umount -l "$work/mount"; fi
  rm -rf "$work"
}
trap clean EXIT
cd "$work"
rclone=$(command -v rclone) || {
  apt-get download -qq rclone=1.60.1+dfsg-2+b5 2>/dev/null
  dpkg-deb -x rclone_*.deb root
  rclone=$work/root/usr/bin/rclone
}
declare -A expected=([off]="0 text" [writes]="1 " [full]="0 ")
for mode in off writes full; do
  mkdir -p bucket mount
  RCLONE_CONFIG= RCLONE_CACHE_DIR=$work/cache "$rclone" mount --vfs-cache-mode "$mode" bucket mount 2>/dev/null &
  for _ in $(seq 100); do
    if mountpoint -q mount; then break; fi
    sleep 0.1
  done
  mountpoint -q mount
  mounted=yes
  mkdir mount/a
  echo text > mount/a/file
  mv mount/a mount/b
  status=0
  text=$(cat mount/b/file 2>/dev/null) || status=$?
  for _ in $(seq 100); do
    later=$(cat mount/b/file 2>/dev/null) || later=
    if [ -n "$later" ]; then break; fi
    sleep 0.2
  done
  echo "$mode: at once: exit code $status, '$text'; later: '$later'"
  [ "$status $text" = "${expected[$mode]}" ] && [ "$later" = text ]
  fusermount -uz mount || umount -l mount
  mounted=
  wait
  rm -r bucket
done
