#!/usr/bin/env bash
# Installs what `make` needs on a bare Debian 12 machine: Debian packages and a virtual environment in
# .venv. Called by every make target; a second call with nothing to do takes a few milliseconds.
#
#   scripts/setup.sh [--gateway]     --gateway: only what a gateway needs to run the daemon
set -euo pipefail
cd "$(dirname "$0")/.."

gateway_packages=(python3 python3-venv python3-bpfcc linux-libc-dev iproute2)
lab_packages=(nftables conntrack tcpdump curl nginx-light unbound dnsutils iperf3 ethtool iputils-ping
  openssh-server shellcheck git make)

packages=("${gateway_packages[@]}")
extras=""
if [[ ${1:-} != --gateway ]]; then
  packages+=("${lab_packages[@]}")
  extras="[lab,test]"
fi

stamp=.venv/.setup-done
digest=$(cat setup.cfg "$0" <(echo "$PWD $extras") | sha256sum | cut -d' ' -f1)
if [[ -f $stamp && $(cat "$stamp") == "$digest" ]]; then
  exit 0
fi

if [[ $(id -u) != 0 ]]; then
  echo "setup: installing packages needs root; run make as root" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $status == ii* ]] || missing+=("$package")
done
if ((${#missing[@]})); then
  echo "setup: installing ${missing[*]}"
  # The lab starts its own nginx, unbound and sshd inside namespaces; a policy-rc.d that answers 101
  # keeps the packages' system services from starting on this machine.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# python3-bpfcc belongs to Debian's own interpreter, so the environment must be made by it.
if [[ ! -x .venv/bin/python ]]; then
  echo "setup: creating .venv"
  /usr/bin/python3 -m venv --system-site-packages .venv
fi
echo "setup: installing the Python packages of setup.cfg"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras}"
echo "$digest" >"$stamp"
