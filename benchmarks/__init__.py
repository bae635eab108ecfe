"""Speed, measured beside what the field does."""
