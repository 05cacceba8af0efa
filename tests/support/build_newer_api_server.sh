#!/usr/bin/env bash
# Builds an API server of a newer Kubernetes, in a system of the matrix that has golang-go and
# golang-k8s-apiextensions-apiserver-dev: the part that serves CustomResourceDefinitions, and knows no Pods. It takes about
# four minutes on two cores, once: the program is kept in that system.
set -euo pipefail

place=/opt/newer-api-server
built=$(dpkg-query --show golang-go golang-k8s-apiextensions-apiserver-dev golang-k8s-apiserver-dev && sha256sum <"$0")
if [ "$(cat $place/built 2>/dev/null)" = "$built" ]; then
  exit 0
fi

# Debian's packages of Go are sources in one GOPATH, and no modules.
export GOPATH=/usr/share/gocode GOCACHE=$WORK/go-cache GO111MODULE=off GOFLAGS= CGO_ENABLED=0
go build -ldflags '-s -w' -o "$WORK/apiextensions-apiserver" k8s.io/apiextensions-apiserver
mkdir -p $place
mv "$WORK/apiextensions-apiserver" $place/
echo "$built" >$place/built
