#!/usr/bin/env bash
# Fetches a kernel for the virtual machine of the tests, see virtual_machine.py, and installs QEMU, and what serves NFS there.
# The kernel is that of Debian's package for clouds; it is kept in the user's cache. Needs Debian and root.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/air-executor/virtual-machine

packages="qemu-system-x86 busybox-static nfs-kernel-server"
if ! [ -x /usr/lib/qemu/virtiofsd ] && apt-cache show virtiofsd >/dev/null 2>&1; then
  packages="$packages virtiofsd"
fi
missing=$(for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || echo "$package"; done)
if [ -n "$missing" ]; then
  echo "installing $(echo $missing)"
  apt-get update -qq
  # The server of NFS would be started as a service of the whole machine otherwise.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
if [ -e "$cache/vmlinuz" ] && ls "$cache"/modules/*nfsd.ko >/dev/null 2>&1; then
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo "fetching a kernel"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)
apt-get -o APT::Sandbox::User=root download -qq "$kernel"
dpkg-deb -x ./*.deb .

# What it needs to see the files of the host, and for NFS, in the order in which it takes them.
modules="drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev
  drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci fs/fuse/fuse fs/fuse/virtiofs fs/overlayfs/overlay
  net/sunrpc/sunrpc net/sunrpc/auth_gss/auth_rpcgss fs/nfs_common/grace fs/lockd/lockd fs/netfs/netfs fs/fscache/fscache
  fs/nfs_common/nfs_acl net/dns_resolver/dns_resolver fs/nfs/nfs fs/nfs/nfsv3 fs/nfs/nfsv4 fs/nfsd/nfsd"
rm -rf "$cache/modules"
mkdir -p "$cache/modules"
number=10
for module in $modules; do
  file=$(find . -path "*/kernel/$module.ko*" | head -1)
  if [ -n "$file" ]; then  # otherwise it is a part of the kernel
    name="$cache/modules/$number-${module##*/}.ko"
    case $file in *.xz) xz -dc "$file" >"$name" ;; *) cp "$file" "$name" ;; esac
  fi
  number=$((number + 1))
done
cp boot/vmlinuz-* "$cache/vmlinuz.new"
mv "$cache/vmlinuz.new" "$cache/vmlinuz"
