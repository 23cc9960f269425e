"""Laws: what each operation admits on the spaces of its operands, one entry an op.

A law is a function of one `Operation`. It says which kinds the op leaves of a space (`keep_only`), what it requires of
degrees (`require`), and sets the facets of the results. An op without a law admits permutations only.
"""
