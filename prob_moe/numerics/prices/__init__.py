"""The law of Gumbel-Matching through its shadow prices: their joint density with the matching, and its integral."""
