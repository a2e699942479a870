"""Objectives that several systems share."""
