"""The four wires into the kernel: IPVS, nftables, routes and addresses, conntrack."""
