"""Training heads on the frozen features of an exported backbone."""
