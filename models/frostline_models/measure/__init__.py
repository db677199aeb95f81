"""Accuracy on a data set: of graphs run here, and of a running server over gRPC."""
