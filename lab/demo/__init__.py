"""`make demo`: real programs through a real gateway, and what the other side saw of each."""
