#!/bin/sh
# Installs the Debian packages that the built-in Kubernetes, the Kafka clients and the build need, as far as they are
# missing. Takes no time when none is, and changes nothing but packages. Rust and Go are assumed.
#
# usage: bootstrap.sh [package...], packages that only some verbs need
set -eu

# The nodes' container runtime and network.
packages='containerd runc containernetworking-plugins iptables nftables conntrack ipset ethtool socat iproute2'
packages="$packages procps util-linux mount"
# What the Rust build needs, and what makes smaller images.
packages="$packages gcc g++ libc6-dev make mold binutils git ca-certificates"
# The Kafka clients of the tests and examples.
packages="$packages kcat busybox-static default-jdk-headless maven"
packages="$packages jq openssl"
# What makes a system call fail in the tests of faults.
packages="$packages strace"
packages="$packages $*"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "bootstrap: this is not Debian or a relative of it; install the equivalents of: $packages" >&2
    exit 0
fi

missing=''
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "bootstrap: not root, so not installing:$missing" >&2
    echo "bootstrap: run 'apt-get install$missing' as root; what cannot do without them fails or is left out until then" >&2
    exit 0
fi

started=$(date +%s)
echo "bootstrap: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# Another installation may be running: wait for it rather than fail.
apt="apt-get -qq -o DPkg::Lock::Timeout=600"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # the lists are meant to be split
if ! { $apt update && $apt install --yes --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "bootstrap: apt-get failed, see above" >&2
    exit 1
fi
echo "bootstrap: installed in $(($(date +%s) - started)) s" >&2
