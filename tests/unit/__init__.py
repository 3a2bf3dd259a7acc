"""Tests that need no network namespace, in the rooms of the tree."""
