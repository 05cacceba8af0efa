#!/usr/bin/env bash
# Installs what the virtual machine of the tests needs, see virtual_machine.py: User-Mode Linux, and what serves NFS there.
# Needs Debian and root.
set -euo pipefail

missing=$(for package in user-mode-linux busybox-static nfs-kernel-server; do
  dpkg -s "$package" >/dev/null 2>&1 || echo "$package"
done)
if [ -n "$missing" ]; then
  echo "installing $(echo $missing)"
  apt-get update -qq
  # The server of NFS would be started as a service of the whole machine otherwise.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
