"""The command ``predict``: what a fitted table says of other rows."""
