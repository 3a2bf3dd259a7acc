"""What the nouns show: one module a noun, rows of plain values in the contract's field order."""
