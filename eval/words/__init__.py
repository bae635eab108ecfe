"""Words of answers: lemmas and nouns."""
