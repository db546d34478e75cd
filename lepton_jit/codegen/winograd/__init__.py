"""Schedules of Winograd's transformations, by themselves and in blocks of tiles with their products."""
