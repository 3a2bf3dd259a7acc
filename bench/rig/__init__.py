"""The equipment of a measurement: namespaces, peers, the packet generator."""
