"""What it is measured with: namespaces, peers, the packet generator."""
