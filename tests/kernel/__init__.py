"""Tests in network namespaces without an enforcer, in directories like those of enforcer/."""
