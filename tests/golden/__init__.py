"""Figures of independent origin, and the command that recomputes them."""
