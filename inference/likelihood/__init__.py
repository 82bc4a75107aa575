"""One assignment under every distribution: ``laws`` asks them, ``matrix_file`` reads what the user brings."""
