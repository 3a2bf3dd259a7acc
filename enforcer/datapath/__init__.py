"""The kernel programs: compile, load, pin, attach, and typed views of their maps."""
