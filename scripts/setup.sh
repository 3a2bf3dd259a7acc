#!/usr/bin/env bash
# Installs what `make` needs on a bare Debian 12 machine: Debian packages, and a virtual environment with
# the Python packages of setup.cfg. Every make target calls it; with nothing to do it takes a few
# milliseconds.
#
#   scripts/setup.sh                    for the lab, the tests and the benchmark, in .venv
#   scripts/setup.sh --vm               the same, and a virtual machine to test another kernel
#   scripts/setup.sh --gateway [DIR]    only the daemon's requirements, in .venv, or installed in DIR
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONHOME PYTHONPATH

gateway_packages=(python3 python3-venv python3-bpfcc linux-libc-dev iproute2)
lab_packages=(nftables conntrack tcpdump curl nginx-light unbound dnsutils iperf3 ethtool iputils-ping
  openssh-server shellcheck git make)
bench_packages=(iptables wrk)
vm_packages=(qemu-system-x86 busybox-static kmod file)

venv=.venv
project=(--editable .)
packages=("${gateway_packages[@]}")
kind=${1:-}
case $kind in
  '')
    packages+=("${lab_packages[@]}" "${bench_packages[@]}")
    project=(--editable '.[bench,lab,test]')
    ;;
  --vm) packages+=("${lab_packages[@]}" "${vm_packages[@]}") project=(--editable '.[lab,test,vm]') ;;
  --gateway) if [[ -n ${2:-} ]]; then venv=$2 project=(--upgrade .); fi ;;
  *) echo "setup: unknown option $kind; see the head of $0" >&2 && exit 2 ;;
esac

fail() {
  echo "setup: $*" >&2
  exit 1
}

# Runs a command and discards its output; if it fails, prints its last message in one line.
quietly() { # WHAT COMMAND…
  local what=$1 log complaint
  shift
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    complaint=$(grep -m1 -E '(^| )(E:|ERROR:|fatal:)' "$log" || tail -1 "$log")
    fail "$what failed: ${complaint#"${complaint%%[![:space:]]*}"} (is the network reachable? all it said: $log)"
  fi
  rm -f "$log"
}

# Waits up to five minutes for the locks of another apt (an unattended upgrade, for example). apt's own
# option waits for dpkg's, and not for that of the lists of packages.
patient_apt() {
  local said
  for _ in {1..60}; do
    said=$(apt-get -o DPkg::Lock::Timeout=300 "$@" 2>&1) && return 0
    [[ $said == *'Could not get lock'* ]] || break
    sleep 5
  done
  echo "$said"
  return 1
}

# Two makes at once would install into each other's environment: the second one waits.
exec 9<"$0"
flock 9

stamp=$venv/.setup$kind
digest=$(cat setup.cfg "$0" <(echo "$PWD") | sha256sum | cut -d' ' -f1)
if [[ ${project[0]} == --editable && -f $stamp && $(cat "$stamp") == "$digest" ]]; then
  exit 0
fi

[[ $(id -u) == 0 ]] || fail 'installing packages needs root; run make as root'
command -v apt-get >/dev/null || fail 'there is no apt-get here; this needs Debian 12 (or a relative of it)'

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
  quietly 'apt-get update' patient_apt update -q
  quietly 'apt-get install' patient_apt install -y -q --no-install-recommends "${missing[@]}"
fi

# python3-bpfcc belongs to Debian's own interpreter, so the environment must be made by it, not by the
# first python3 on PATH; another version of that interpreter needs a new environment.
if ! "$venv/bin/python" -c 'import bcc, pip' 2>/dev/null; then
  echo "setup: creating $venv"
  quietly 'creating the virtual environment' /usr/bin/python3 -m venv --clear --system-site-packages "$venv"
fi
echo "setup: installing the Python packages of setup.cfg"
quietly 'pip install' "$venv/bin/python" -m pip install --disable-pip-version-check "${project[@]}"
# lab/ and bench/ are not installed on a gateway: processes of the environment import them from here.
if [[ ${project[0]} == --editable ]]; then
  echo "$PWD" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
fi
# Root runs it: it imports nothing from a user's own site directory (enforcer/control/interpreter.py).
sed -i '1s|^#!.*/python[0-9.]*$|& -Ps|' "$venv/bin/enforcer"
echo "$digest" >"$stamp"
