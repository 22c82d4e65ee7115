"""Evaluation: protocols, methods, metrics, statistics, reports."""
