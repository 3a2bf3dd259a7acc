"""Tests in network namespaces that hold no enforcer, in the rooms of the tree."""
