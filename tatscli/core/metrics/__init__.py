"""Distances between sets of videos and the features they are computed on."""
