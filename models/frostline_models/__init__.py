"""Backbones and heads for Frostline: generate, train, export, measure."""
