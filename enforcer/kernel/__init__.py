"""Access to the kernel except BPF: nftables, addresses, routes, filters, sysctls, conntrack, NFQUEUE."""
