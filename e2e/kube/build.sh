#!/bin/sh
# Builds the programs of the built-in Kubernetes from source, once.
#
# usage: build.sh NAME...        each NAME is a folder beside this script that holds a Go module
#
# Prints the path of each binary on stdout, in order, and what it is doing on stderr. A binary is kept
# in ${XDG_CACHE_HOME:-~/.cache}/palisade/bin/NAME-HASH, where HASH covers the module's go.mod, go.sum
# and sources and the Go version, so a second call is instant and a changed pin is never missed.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/palisade/bin
kubernetes=1.37.2

# What a reader should expect of each build, on two cores with cold caches.
describe() {
    case $1 in
    k8s) echo "Kubernetes $kubernetes and etcd from source, about 10 minutes" ;;
    coredns) echo "CoreDNS from source, about 1 minute" ;;
    netpol) echo "the NetworkPolicy agent from source, about 1 minute" ;;
    provisioner) echo "the volume provisioner from source, under a minute" ;;
    helm) echo "Helm from source, about 2 minutes" ;;
    *) echo "$1 from source" ;;
    esac
}

ldflags() {
    flags='-s -w'
    if [ "$1" = k8s ]; then
        # Without these the API server calls itself v0.0.0 and clients refuse to talk to it.
        for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
            flags="$flags -X $package.gitVersion=v$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=37"
            flags="$flags -X $package.gitTreeState=clean"
        done
    fi
    echo "$flags"
}

build() {
    name=$1
    module=$here/$name
    [ -f "$module/go.mod" ] || { echo "build.sh: $name: no such module in $here" >&2; exit 2; }
    hash=$(cd "$module" && { go version; cat go.mod go.sum ./*.go; ldflags "$name"; } | sha256sum | cut -c1-16)
    binary=$cache/$name-$hash
    if [ ! -x "$binary" ]; then
        mkdir -p "$cache"
        # One build at a time over all callers: two would only take each other's cores and memory.
        exec 9>"$cache/.lock"
        flock 9
        if [ ! -x "$binary" ]; then
            started=$(date +%s)
            echo "building $(describe "$name") (once; kept in $cache)" >&2
            (
                # The last sleep outlives its loop: it must not hold the output that a caller reads to its end.
                while sleep 30 >/dev/null 2>&1; do echo "  still building $name, $(($(date +%s) - started)) s" >&2; done
            ) 9>&- &
            ticker=$!
            trap 'kill "$ticker" 2>/dev/null || true' EXIT
            status=0
            (cd "$module" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' \
                go build -trimpath -ldflags "$(ldflags "$name")" -o "$binary.new" .) >&2 9>&- || status=$?
            kill "$ticker" 2>/dev/null || true
            wait "$ticker" 2>/dev/null || true
            trap - EXIT
            if [ "$status" -ne 0 ]; then
                echo "build.sh: building $name failed, see above" >&2
                exit "$status"
            fi
            mv "$binary.new" "$binary"
            echo "  built $name in $(($(date +%s) - started)) s" >&2
        fi
        exec 9>&-
    fi
    echo "$binary"
}

command -v go >/dev/null || { echo "build.sh: Go is not installed; the built-in Kubernetes is built from source with it" >&2; exit 3; }
for name in "$@"; do
    build "$name"
done
