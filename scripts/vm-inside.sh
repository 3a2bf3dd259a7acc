#!/usr/bin/env bash
# The guest's part of scripts/test-vm.sh: loads what a gateway's kernel has as modules, then runs pytest.
#
#   scripts/vm-inside.sh RESULTS PYTEST-ARGUMENT…
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
results=$1
shift
touch "$results/started"
exec >"$results/output" 2>&1
export PYTHONDONTWRITEBYTECODE=1
PATH=$PWD/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin

echo "test-vm: Linux $(uname -r), up for $(cut -d. -f1 /proc/uptime) s"
mkdir -p /run/netns
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

for module in veth sch_ingress cls_bpf act_mirred nf_tables nf_conntrack nf_conntrack_netlink nf_nat nft_ct \
  nft_nat nft_chain_nat nft_reject_inet nft_fib_inet overlay tun; do
  modprobe "$module" || echo "test-vm: no module $module"
done

python -m pytest -p no:cacheprovider --timeout 300 "$@"
code=$?
echo "test-vm: $(cut -d. -f1 /proc/uptime) s"
echo "$code" >"$results/exit-code.new"
mv "$results/exit-code.new" "$results/exit-code"
