"""Facts: the store of sessions and learnt names, their numbers, regions, and the kernel's maps of them."""
