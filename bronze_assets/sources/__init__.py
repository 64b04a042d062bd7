"""Where rows come from: one module per kind of source (`postgres`, with its address and its types beside it), and
`scope`, what of a table a batch reads.
"""
