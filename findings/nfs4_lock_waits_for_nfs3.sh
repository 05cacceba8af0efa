#!/usr/bin/env bash
# A lock on NFS 4 is not given while clients of NFS 3 may have theirs back; one that is not to wait waits for that, too.
#
# Expected: a server of Linux whose nfsv4gracetime is 10 s, and whose v4_end_grace says Y, gives a client of NFS 4.2 a lock
# at once. If it does not, `flock --nonblock` fails at once.
# Seen with Linux 6.1.176 (User-Mode Linux of Debian 12), nfs-utils 2.6.2, server and client in it, nobody had a lock before:
# `flock --nonblock` waits for 52 to 60 s, and then has the lock. With fs.nfs.nlm_timeout and nlm_grace_period = 3 it is
# some seconds, and so it is if the server has no NFS 3 (rpc.nfsd --no-nfs-version 3): the time of lockd, which is 50 s by
# default, counts for NFS 4 as well, whatever nfsd says of its own.
# Here: a manager whose base path is on such a server waits as long for its lock after the server has started, and says so.
set -euo pipefail
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  apt-get update -qq
  apt-get -o APT::Sandbox::User=root download -qq user-mode-linux=6.1um4+b13 nfs-kernel-server=1:2.6.2-4+deb12u1 \
    nfs-common=1:2.6.2-4+deb12u1 rpcbind=1.2.6-6+b1 busybox-static libtirpc3 libevent-core-2.1-7 libnfsidmap1 libwrap0
  for package in ./*.deb; do dpkg-deb -x "$package" .; done
  mkdir mounts
  for how in default short without-3; do
    cat >init <<END
#!/bin/sh
mount -t proc proc /proc
exec /bin/bash $(realpath "$OLDPWD/$0" 2>/dev/null || realpath "$0") inside $work $how
END
    chmod +x init
    timeout 200 usr/bin/linux.uml mem=512M uml_dir="$work/" root=/dev/root rootfstype=hostfs rootflags=/ ro \
      con=null con0=null,fd:1 ssl=null quiet loglevel=1 init="$work/init" </dev/null >"$how" 2>&1 || true
    sed -n 's/\r//; s/^seen: //p' "$how"
  done
  seconds() { sed -n 's/\r//; s/^seen: .*got the lock after \([0-9]*\) s$/\1/p' "$1"; }
  [ "$(seconds default)" -ge 45 ] && [ "$(seconds short)" -le 20 ] && [ "$(seconds without-3)" -le 20 ]
  exit
fi

work=$2
trap '"$work/bin/busybox" poweroff -f' EXIT
export PATH=$work/usr/sbin:$work/sbin:$work/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LD_LIBRARY_PATH=$work/lib/x86_64-linux-gnu:$work/usr/lib/x86_64-linux-gnu
modules=$(echo "$work"/usr/lib/uml/modules/*)
for wanted in nfsv4 nfsd; do  # after what they need, of which the last comes first
  for module in $(awk -F '[: ]+' "/\\/$wanted.ko:/ { for (n = NF; n > 0; n--) print \$n }" "$modules/modules.dep"); do
    "$work/bin/busybox" insmod "$modules/$module" 2>/dev/null || true  # it may be there
  done
done
"$work/bin/busybox" ifconfig lo up
mount -t tmpfs tmpfs "$work/mounts"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir -p "$work"/mounts/{served,seen} /run/rpcbind /var/lib/nfs/rpc_pipefs
touch /var/lib/nfs/{etab,rmtab}
echo 0 >/proc/sys/fs/leases-enable
if [ "$3" = short ]; then
  echo 3 >/proc/sys/fs/nfs/nlm_timeout
  echo 3 >/proc/sys/fs/nfs/nlm_grace_period
fi
mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4gracetime
rpcbind -w
exportfs -i -o rw,no_root_squash,insecure,no_subtree_check,fsid=0 "127.0.0.1:$work/mounts/served"
rpc.mountd
if [ "$3" = without-3 ]; then rpc.nfsd --no-nfs-version 3 2; else rpc.nfsd 2; fi
SECONDS=0
echo Y >/proc/fs/nfsd/v4_end_grace
mount.nfs 127.0.0.1:/ "$work/mounts/seen" -o vers=4.2
if flock --nonblock "$work/mounts/seen/file" true; then what="got the lock"; else what="did not get the lock"; fi
echo "seen: $3, v4_end_grace $(cat /proc/fs/nfsd/v4_end_grace): $what after $SECONDS s"
