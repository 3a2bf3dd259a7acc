"""What a policy means: language, reference evaluator, match tables."""
