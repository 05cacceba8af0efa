#!/usr/bin/env bash
# Builds Kubernetes 1.20.2 from Debian's source package, for the tests of the runner `kubernetes`. It takes about four
# minutes on two cores, once: the programs are kept in the user's cache. Needs Debian 12 and root.
set -euo pipefail

recipe=$(realpath "$0")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/air-executor/kubernetes-1.20.2
programs="kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl"

packages="golang-1.19-go etcd-server containerd runc containernetworking-plugins busybox-static bash-static dpkg-dev"
missing=$(for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || echo "$package"; done)
if [ -n "$missing" ]; then
  echo "installing $(echo $missing)"
  apt-get update -qq
  # Debian would start etcd and containerd for the whole machine.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  if [ -n "$(trap -p EXIT)" ]; then
    rm -f $policy
    trap - EXIT
  fi
fi

# What an earlier version of this script has built is built again.
if cmp -s "$recipe" "$cache/recipe"; then
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

echo "fetching the source"
# Where sources are is what the machine's own list says, with deb-src for deb; the list itself stays as it is.
mkdir -p apt/lists/partial apt/cache/archives/partial
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [ -f "$file" ] && sed -n 's/^deb /deb-src /p' "$file" | grep -i debian
done > apt/sources.list || true
for file in /etc/apt/sources.list.d/debian.sources; do
  [ -f "$file" ] && sed 's/^Types:.*/Types: deb-src/' "$file" > apt/debian.sources
done
mkdir apt/parts
[ -f apt/debian.sources ] && cp apt/debian.sources apt/parts/
options="-o Dir::Etc::SourceList=$work/apt/sources.list -o Dir::Etc::SourceParts=$work/apt/parts -o Dir::State::Lists=$work/apt/lists -o Dir::Cache=$work/apt/cache -o APT::Sandbox::User=root"
apt-get $options update -qq
apt-get $options source -qq --download-only kubernetes >/dev/null
dpkg-source --no-check -x kubernetes_*.dsc source >/dev/null

# All that it needs is vendored, so it must look as if it lay in a GOPATH, and modules must be off.
mkdir -p go/src/k8s.io
mv source go/src/k8s.io/kubernetes
cd go/src/k8s.io/kubernetes
export GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off GOFLAGS=
export CGO_ENABLED=0  # there may be no C compiler
export PATH=/usr/lib/go-1.19/bin:$PATH

# Two nodes of one machine have loopback addresses, which a kubelet refuses. It looks only every second for what has
# happened, and tests would wait for that alone. When it looks more often, it also has to clear away what has ended more
# often: it misses some of that at first, and a Pod that is deleted is there until then. And it would change settings of
# the whole kernel. It asks containerd by v1alpha2 of the API of runtimes, which containerd 2 does not have any more. Both
# that and the one of Debian 12 have v1, whose messages are the same as far as this kubelet uses them.
python3 - <<'PATCH'
import pathlib


def replace(name, old, new):
    path = pathlib.Path("pkg/kubelet", name)
    source = path.read_text()
    if source.count(old) != 1:
        raise SystemExit(f"{path} looks different: {old}")
    path.write_text(source.replace(old, new))


replace("kubelet_node_status.go", "if nodeIP.IsLoopback() {", "if false {")
replace("kubelet.go", "plegRelistPeriod = time.Second * 1", "plegRelistPeriod = time.Millisecond * 200")
replace("kubelet.go", "ContainerGCPeriod = time.Minute", "ContainerGCPeriod = time.Second * 2")
replace("status/status_manager.go", "const syncPeriod = 10 * time.Second", "const syncPeriod = time.Second")
replace("cm/container_manager_linux.go", "b := KernelTunableModify", "b := KernelTunableWarn")

runtimes = pathlib.Path("staging/src/k8s.io/cri-api/pkg/apis/runtime/v1alpha2/api.pb.go")
calls = '.Invoke(ctx, "/runtime.{}.'
source = runtimes.read_text()
if source.count(calls.format("v1alpha2")) < 20:
    raise SystemExit(f"{runtimes} looks different")
runtimes.write_text(source.replace(calls.format("v1alpha2"), calls.format("v1")))
PATCH

echo "generating the description of the API"
tags=$(grep -rl --include='*.go' '+k8s:openapi-gen=' cmd pkg plugin staging/src/k8s.io vendor/k8s.io 2>/dev/null | xargs -r -n1 dirname | sort -u |
  sed -e 's|^staging/src/|k8s.io/kubernetes/vendor/|' -e 's|^vendor/|k8s.io/kubernetes/vendor/|' -e 's|^\(cmd\|pkg\|plugin\)/|k8s.io/kubernetes/\1/|' | sort -u | paste -sd,)
go build -o "$work/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
"$work/openapi-gen" -O zz_generated.openapi -i "$tags" -p k8s.io/kubernetes/pkg/generated/openapi -h /dev/null \
  -r /dev/null -o "$GOPATH/src" >/dev/null 2>openapi.log || { tail openapi.log; exit 1; }

# With its parts for Docker, a kubelet waits five seconds for that at its start.
mkdir "$work/bin"
for program in $programs; do
  echo "building $program"
  go build -tags providerless,dockerless -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.20.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=20' \
    -o "$work/bin/$program" "k8s.io/kubernetes/cmd/$program"
done
mkdir -p "$(dirname "$cache")"
rm -rf "$cache.new"
cp "$recipe" "$work/bin/recipe"
cp -r "$work/bin" "$cache.new"
rm -rf "$cache"
mv "$cache.new" "$cache"
echo "built in $SECONDS s: $cache"
