#!/usr/bin/env bash
# Names the lab's interfaces of this machine and gives them their addresses and routes; those of `make lab`
# (lab/topology.py). The origin stands for the internet: it is the gateway's router, and both origins, the
# resolver and the private network are network namespaces behind it. Run at every boot; a second run changes
# nothing.
#
#   vagrant/network.sh client|gateway|origin [PREFIX]      PREFIX: start of the namespaces' names
set -euo pipefail
prefix=${2:-lab}

# The interface with this MAC address gets this name. The addresses are those of the Vagrantfile.
name() { # MAC NAME
  local current
  current=$(ip -o link | awk -v mac="$1" '$0 ~ "link/ether " mac { sub("[:@].*", "", $2); print $2 }')
  if [[ -z $current ]]; then
    echo "network.sh: no interface has the address $1 ($2)" >&2
    exit 1
  fi
  if [[ $current != "$2" ]]; then
    ip link set "$current" down
    ip link set "$current" name "$2"
  fi
  ip link set "$2" up
}

addresses() { # INTERFACE ADDRESS…
  local interface=$1 address
  shift
  for address; do
    if [[ $address == *:* ]]; then
      ip addr replace "$address" dev "$interface" nodad
    else
      ip addr replace "$address" dev "$interface"
    fi
  done
}

routes() { # NETWORK… then "via ADDRESS" or "dev INTERFACE"
  local how=("${@: -2}") network
  for network in "${@:1:$#-2}"; do
    ip route replace "$network" "${how[@]}"
  done
}

# A server in a namespace of its own, and this machine's interface to it, its router.
server() { # NAME IPV4 IPV4-ROUTER IPV6 IPV6-ROUTER
  local namespace=$prefix-$1
  if [[ ! -e /run/netns/$namespace ]]; then
    ip netns add "$namespace"
    ip link add "$1" type veth peer name eth0 netns "$namespace"
  fi
  ip link set "$1" up
  addresses "$1" "$3/24" "$5/64"
  ip -n "$namespace" -batch - <<END
link set lo up
link set eth0 up
addr replace $2/24 dev eth0
addr replace $4/64 dev eth0 nodad
route replace default via $3
route replace default via $5
END
}

sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0
case ${1:-} in
  client)
    name 52:54:00:e6:01:02 eth1
    addresses eth1 10.0.1.2/24 fd00:1::2/64
    routes 198.18.0.0/15 10.20.0.0/16 198.51.100.0/24 via 10.0.1.1
    routes 2001:db8::/32 fd20::/48 via fd00:1::1
    ;;
  gateway)
    name 52:54:00:e6:01:01 in0
    name 52:54:00:e6:ff:01 out0
    addresses in0 10.0.1.1/24 fd00:1::1/64
    addresses out0 198.51.100.1/24 2001:db8:ffff::1/64
    routes 198.18.0.0/15 10.20.0.0/16 via 198.51.100.254
    routes 2001:db8::/32 fd20::/48 via 2001:db8:ffff::fe
    ;;
  origin)
    name 52:54:00:e6:ff:fe gw0
    addresses gw0 198.51.100.254/24 2001:db8:ffff::fe/64
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    server origin1 198.18.1.10 198.18.1.1 2001:db8:a1::10 2001:db8:a1::1
    server origin2 198.18.2.10 198.18.2.1 2001:db8:a2::10 2001:db8:a2::1
    server resolver 198.18.53.53 198.18.53.1 2001:db8:53::53 2001:db8:53::1
    server private 10.20.0.10 10.20.0.1 fd20::10 fd20::1
    # Egress addresses: IPv4 by ARP on the wire, IPv6 ranges routed to the gateway. There is no route to
    # the client's network: what leaves the gateway untranslated is never answered.
    routes 203.0.113.0/24 dev gw0
    routes 2001:db8::/44 via 2001:db8:ffff::1
    ;;
  *)
    echo "usage: $0 client|gateway|origin [PREFIX]" >&2
    exit 2
    ;;
esac
