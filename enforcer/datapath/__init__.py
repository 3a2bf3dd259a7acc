"""The BPF programs: compiling, loading, pinning and attaching them, and typed access to their maps."""
