"""
A run as one page: ``runs.run_reader`` opens its folder, ``report`` says what stands on the page, ``html`` writes it.
"""
