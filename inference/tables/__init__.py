"""
Tables of one's own: ``reading`` opens a file, ``columns`` makes numbers of it, ``table_run`` is the folder of a fit.
"""
