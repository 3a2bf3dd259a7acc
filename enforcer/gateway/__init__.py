"""One gateway: desired state, actual state, the plan between them and its execution."""
