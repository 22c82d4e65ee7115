"""Losses, metrics, evaluation and the Lightning module."""
