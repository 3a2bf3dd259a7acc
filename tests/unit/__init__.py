"""Unit tests, which need no network namespace; the directories mirror those of enforcer/."""
