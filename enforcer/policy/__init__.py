"""Policies: language, reference evaluator, rules, match tables and resolvers. Pure: no I/O."""
