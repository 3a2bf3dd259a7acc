#!/usr/bin/env bash
# Runs tests/vm under Debian's stock kernel (6.1 in Debian 12), which gateways run: in a virtual
# machine, by software emulation if necessary, as root on a copy-on-write view of this file system and without
# a network. Nothing of this machine changes: the kernel's package is unpacked into build/vm, not installed.
#
#   scripts/test-vm.sh [PYTEST ARGUMENT…]     default: tests/vm
#
# Exit code 0 also where this cannot be tried: a line that begins with "test-vm: SKIPPED" names what is missing. A
# set-up that fails is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${TEST_VM_MINUTES:-20}
work=$PWD/build/vm
kernel_package=linux-image-amd64

skip() {
  echo "test-vm: SKIPPED: $*"
  exit 0
}

fail() {
  echo "test-vm: $*" >&2
  exit 1
}

# The guest has this file system, but a /tmp of its own.
case $PWD/ in /tmp/* | /run/*) skip "the guest has its own ${PWD%"${PWD#/*/}"}: clone the project elsewhere" ;; esac
[[ $(uname -m) == x86_64 ]] || skip "the stock kernel of $(uname -m) has not been tried"
scripts/setup.sh --vm
PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin

# Unpacks the kernel that the package of all stock kernels depends on; prints its path.
fetch_kernel() {
  local package into
  package=$(apt-cache depends "$kernel_package" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  [[ -n $package ]] || { apt-get update -q >&2 && return 1; }
  into=$work/$package
  if [[ ! -e $into/complete ]]; then
    rm -rf "$into"
    mkdir -p "$into"
    echo "test-vm: unpacking $package into ${into#"$PWD/"}" >&2
    # Root writes here; apt's own user may lack the permission.
    (cd "$into" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2) || return 1
    # Leaves out drivers of real hardware: 300 of 400 MB.
    dpkg-deb --fsys-tarfile "$into"/*.deb | tar -x -C "$into" --exclude='*/drivers/gpu' --exclude='*/drivers/media' \
      --exclude='*/drivers/net/ethernet' --exclude='*/drivers/net/wireless' --exclude='*/drivers/infiniband' \
      --exclude='*/drivers/scsi' --exclude='*/drivers/staging' --exclude='*/drivers/usb' --exclude='*/sound' \
      --exclude='*/drivers/iio' --exclude='*/drivers/hwmon' --exclude='*/drivers/isdn' ./boot ./lib
    rm "$into"/*.deb
    depmod -b "$into" "${package#linux-image-}"
    touch "$into/complete"
  fi
  echo "$into/boot/vmlinuz-${package#linux-image-}"
}

kernel=$(fetch_kernel || fetch_kernel) || fail "the package $kernel_package cannot be fetched"

# The guest's own view of this directory: what it writes there is read here.
results=$(mktemp -d "$work/run-XXXXXX")
# /dev/kvm is there on machines where it does not work; emulation works everywhere. The second view of the
# root is for scripts/vm-inside.sh.
machine=(--disable-kvm --memory 2G --cpus 2 "--qemu-opts=-fsdev local,id=cached,path=/,security_model=none,\
readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=cached,mount_tag=cached")
tests=("${@:-tests/vm}")
# The guest cannot write byte code beside the sources, and compiling them again there takes long.
.venv/bin/python -m compileall -q enforcer tests

printf '%q ' bash scripts/vm-inside.sh "$results" "${tests[@]}" >"$results/command"
echo "test-vm: booting $(basename "$kernel"), ${minutes} minutes at most"
touch "$results/output"
tail -n +1 -f "$results/output" &
follower=$!

# shellcheck disable=SC2317  # called by the trap
cleanup() {
  kill "$follower" 2>/dev/null || true
  rm -rf "$results"
}
trap cleanup EXIT

# script(1): vng wants a terminal. Its own console output is of interest only if the guest never starts.
timeout --kill-after=10 "${minutes}m" script -qefc "$(printf '%q ' vng -r "$kernel" "${machine[@]}" \
  --cwd "$PWD" --rwdir "$results" -- "bash $results/command")" /dev/null \
  </dev/null >"$results/console" 2>&1 || true
sleep 0.5 # the follower's last lines

if [[ ! -e $results/started ]]; then
  cat "$results/console" >&2
  fail 'the virtual machine did not start (its console is above)'
fi
if [[ ! -e $results/exit-code ]]; then
  fail "the tests had not ended after $minutes minutes, or the virtual machine died"
fi
exit "$(cat "$results/exit-code")"
