"""One gateway: what the file wants, what the kernel holds, and the operations between them."""
