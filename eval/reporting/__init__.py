"""Scores for people: tables, figures, pages, MLflow."""
