"""Heads for any backbone: a light and a strong form for each task.

A head is a module over a list of NCHW maps ``[N, C, h, w]`` (action: ``[N, T, C, h, w]``),
in the order of its ``features``.  ``forward`` gives what its loss needs, ``serve`` the
tensors of the exported graph, named by ``outputs``; everything has fixed shapes but the
batch, so one graph serves any.
"""
