"""Losses, Lightning modules, callbacks and the training engine."""
