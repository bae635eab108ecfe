"""What a user submits: training, evaluation, sweeps and studies."""
