"""The daemon's control socket, worker processes, and how they are started."""
