"""The posterior of the piecewise task: ``sampling`` by NUTS with labels put in order, ``report`` what to make of it."""
