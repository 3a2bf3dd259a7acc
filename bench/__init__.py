"""Speed and memory against plain nftables, as ratios measured in one run (`python -m bench`)."""
