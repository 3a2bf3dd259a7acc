"""The data that the CLI's nouns show: one module per noun, rows of plain values in documented field order."""
