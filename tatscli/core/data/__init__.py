"""Videos, frames, clips, tokens on disk and synthetic data."""
