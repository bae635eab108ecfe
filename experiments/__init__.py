"""The commands that users submit: training, evaluation, sweeps and studies."""
