"""
Claims about routing, each with its number and verdict, from the table of the study of routing.

``catalogue`` states them as comparisons, ``comparison`` takes these from the table, ``verdicts`` decides, ``page``
writes and rewrites what documentation says of them.
"""
