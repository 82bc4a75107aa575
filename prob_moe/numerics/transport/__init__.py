"""Transport plans with few entries for each datapoint."""
