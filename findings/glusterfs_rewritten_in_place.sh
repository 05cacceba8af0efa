#!/usr/bin/env bash
# GlusterFS shows a client the content that it has written itself, long after another client has written another one.
#
# Expected: the other content within a second, for which its caches are kept (performance.md-cache-timeout), and at once
# after the directory was listed.
# Seen with GlusterFS 10.3 of Debian 12, a volume with the default options, two mounts of one machine: B writes 16 bytes,
# then A writes 16 others over them, in place, and B opens and reads the file five times a second. The first time it sees
# what A has written at once. The second time it still reads its own bytes after 20 s, whether or not it lists the
# directory each time, while `dd iflag=direct` reads the new ones. If A writes one byte more, B sees that.
# Here: a file that rings a bell was changed so. It is read with O_DIRECT on FUSE (jobs/bell.py).
set -euo pipefail
if [ "${1:-}" != inside ]; then
  missing=$(for name in glusterfs-server glusterfs-client e2fsprogs; do dpkg -s $name >/dev/null 2>&1 || echo $name; done)
  if [ -n "$missing" ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null
  fi
  exec unshare --mount --pid --fork --kill-child --mount-proc --net bash "$0" inside
fi
work=$(mktemp -d)
trap 'umount -l "$work"/* 2>/dev/null || true; rm -rf "$work"' EXIT
ip link set lo up
ip address add 192.0.2.1/32 dev lo  # loopback addresses are refused
truncate -s 1G "$work/image"
mkfs.ext4 -q "$work/image"
mkdir "$work"/{brick,A,B}
mount -o loop "$work/image" "$work/brick"
for place in /var/lib/glusterd /var/log/glusterfs /run; do
  mkdir -p $place
  mount -t tmpfs tmpfs $place
done
mkdir -p /var/log/glusterfs/bricks /run/gluster
glusterd
for _ in $(seq 60); do
  if gluster --mode=script volume list >/dev/null 2>&1; then break; fi
  sleep 1
done
gluster --mode=script volume create served 192.0.2.1:"$work/brick/served" force >/dev/null
gluster --mode=script volume start served >/dev/null
for name in A B; do mount -t glusterfs 192.0.2.1:/served "$work/$name"; done
cd "$work"
glusterfs --version | head -1

# Writes in place.
write() { printf %s "$2" | dd of="$1" conv=notrunc status=none; }

# B writes the file; a second later A writes, and B reads it until it sees that, 20 seconds at most.
# Prints the seconds.
seen() {
  write "B/$1/file" "$2"
  for number in $(seq -5 99); do
    if [ "$number" = 0 ]; then write "A/$1/file" "$3"; fi
    if [ "$1" = listed ]; then ls "B/$1" >/dev/null; fi
    if [ "$number" -ge 0 ] && [ "$(cat "B/$1/file")" = "$3" ]; then echo $((number / 5)); return; fi
    sleep 0.2
  done
  echo "more than 20"
}

for name in listed not-listed; do
  mkdir "A/$name"
  first=$(seen $name 0000000000000000 1111111111111111)
  second=$(seen $name 2222222222222222 3333333333333333)
  direct=$(dd if="B/$name/file" iflag=direct status=none)
  longer=$(seen $name 4444444444444444 55555555555555555)
  echo "$name: $first s, then $second s (direct: $direct), and if A writes one byte more $longer s"
  [ "$first" -le 2 ] && [ "$second" = "more than 20" ] && [ "$direct" = 3333333333333333 ] && [ "$longer" -le 2 ]
done
