"""Files of rows: which ones a path names, and how each kind is read in bounded memory."""
