"""The rest of the kernel, through pyroute2: nftables, addresses, routes, filters, sysctls, conntrack."""
