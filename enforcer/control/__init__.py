"""The daemon's socket, and work in processes of its own."""
