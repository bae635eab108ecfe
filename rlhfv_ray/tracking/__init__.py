"""MLflow, fed from records in the run folder."""
