"""Meshes → rendered views and labelled points → trained weights.

May import everything but ``demo``; nothing imports it but the command line.
"""
