"""The configuration file as validated models."""
