#!/usr/bin/env bash
# Build the Dockerfile on a Debian machine without a container registry and without a daemon:
# buildah builds, and where the Dockerfile's base image cannot be had, debootstrap makes one under
# the same name, with Debian's own Python 3.11. The Dockerfile is used as it is.
#
#   tools/build_image.sh [TAG]      TAG defaults to localhost/boltz-mesh:latest
#
# MIRROR names a Debian mirror; without it, the first that this machine's apt uses. Needs root, buildah and debootstrap (tools/install_system.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:-localhost/boltz-mesh:latest}
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed -n 1p)}
# No daemon, no user namespaces, no overlay file system: works inside a container, too.
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

if [ "$(id -u)" -ne 0 ]; then
  echo "build_image.sh needs root: debootstrap makes device files" >&2
  exit 1
fi
for command in buildah debootstrap; do
  command -v "$command" >/dev/null || {
    echo "$command is missing; run tools/install_system.sh" >&2
    exit 1
  }
done

base=$(sed -n 's/^ARG BASE=//p' Dockerfile)
[ -n "$base" ] || { echo "the Dockerfile names no BASE" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
  echo "making $base from $mirror"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    bookworm "$work/root" "$mirror" >"$work/debootstrap.log" 2>&1 || {
    tail -n 20 "$work/debootstrap.log" >&2
    exit 1
  }
  rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$work/root" / >/dev/null
  buildah commit --quiet --rm "$container" "$base" >/dev/null
  rm -rf "$work/root"
fi

# pip inside the build trusts what this machine trusts, and uses the index this machine uses: a
# proxy with an authority of its own, or a mirror, works without a word in the Dockerfile.
printf '[global]\ndisable-pip-version-check = true\ncert = /etc/ssl/certs/ca-certificates.crt\n' \
  >"$work/pip.conf"
index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || true)}
[ -z "$index" ] || printf 'index-url = %s\n' "$index" >>"$work/pip.conf"

buildah build --pull-never --format docker --tag "$tag" \
  --volume "$work/pip.conf:/etc/pip.conf:ro" \
  --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro \
  .
