"""DDPO and SFT on Ray Train and DeepSpeed workers: sampler, update, metrics, checkpoints."""
