"""Prefect flows: a flow reads as a list of steps."""
