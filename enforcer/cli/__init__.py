"""The click commands: one module a command; a command prints only what the library returns."""
