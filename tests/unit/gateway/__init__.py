"""Tests of enforcer/gateway/."""
