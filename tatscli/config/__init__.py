"""What can be set: pydantic models, read from defaults, presets, files and options. No torch."""
