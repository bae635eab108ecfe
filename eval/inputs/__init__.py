"""Files that users bring to an evaluation: questions, images, answers."""
