"""`make demo`: sends real programs' traffic through a gateway and shows what the origin saw of each."""
