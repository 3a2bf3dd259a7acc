#!/usr/bin/env bash
# The guest's part of scripts/test-vm.sh: a root file system with a cache, the modules of a gateway's kernel, pytest.
#
#   scripts/vm-inside.sh RESULTS PYTEST-ARGUMENT…
set -uo pipefail
repository=$(realpath "$(dirname "$0")/..")
results=$1
shift
export PYTHONDONTWRITEBYTECODE=1
export PATH=$repository/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The guest starts on the host's file system by 9p without a cache: each start of a program reads all of it
# again. Another mount with a cache is five times faster.
enter_cached_root() {
  local root=/run/cached directory
  mkdir -p $root
  mount -t tmpfs tmpfs $root
  mkdir $root/{host,upper,work,root}
  mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose cached $root/host &&
    mount -t overlay -o "lowerdir=$root/host,upperdir=$root/upper,workdir=$root/work" overlay $root/root ||
    return
  for directory in dev proc sys lib/modules; do
    mkdir -p "$root/root/$directory"
    mount --rbind "/$directory" "$root/root/$directory"
  done
  mount -t tmpfs tmpfs $root/root/run
  mount -t tmpfs tmpfs $root/root/tmp
  mount --bind "$results" "$root/root$results"
  CACHED_ROOT=yes exec chroot $root/root bash "$repository/scripts/vm-inside.sh" "$results" "$@"
}

if [[ -z ${CACHED_ROOT:-} ]]; then
  touch "$results/started"
  exec >"$results/output" 2>&1
  echo "test-vm: Linux $(uname -r), up for $(cut -d. -f1 /proc/uptime) s"
  enter_cached_root "$@"
  echo 'test-vm: no cached root: this will be slow'
fi

cd "$repository" || exit 1
mkdir -p /run/netns
mountpoint -q /sys/fs/bpf || mount -t bpf -o mode=700 bpf /sys/fs/bpf
for module in veth sch_ingress cls_bpf act_mirred nf_tables nf_conntrack nf_conntrack_netlink nf_nat nft_ct \
  nft_nat nft_chain_nat nft_reject_inet; do
  modprobe "$module" || echo "test-vm: no module $module"
done

python -m pytest -p no:cacheprovider --timeout 600 -v "$@"
code=$?
echo "test-vm: $(cut -d. -f1 /proc/uptime) s since the start"
echo "$code" >"$results/exit-code.new"
mv "$results/exit-code.new" "$results/exit-code"
