"""Cuts a foreign ONNX model into a backbone and heads.

``graph`` reads and refuses; ``freeze`` settles sizes and shapes; ``cuts`` says where a cut is
possible and what it is worth; ``forms`` recognizes what the outputs are and turns them into the
server's; ``common`` finds what several models share; ``build`` writes both halves; ``prove``
compares them with the whole and times them.
"""
