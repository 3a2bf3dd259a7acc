"""The kernel side: C sources, shipped as package data. There is no Python here."""
