#!/usr/bin/env bash
# What `make test-system` needs beside .venv. As root on Debian it installs what is missing; as
# anybody else it names it and fails, because a system test that quietly does not run proves nothing.
set -euo pipefail

packages=()
command -v buildah >/dev/null || packages+=(buildah)
[ -x /usr/sbin/debootstrap ] || packages+=(debootstrap)
# A server with TLS; the embedded one is built without.
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || packages+=(postgresql)

if [ ${#packages[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "system tests need these Debian packages: ${packages[*]}" >&2
  echo "as root: apt-get install --no-install-recommends ${packages[*]}" >&2
  exit 1
fi
echo "installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
