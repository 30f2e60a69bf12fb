"""Who learns: the algorithms, and the policies they train."""
