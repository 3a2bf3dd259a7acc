"""Access to the kernel except BPF: nftables, addresses, routes, TC filters, sysctls, conntrack, queues,
events."""
