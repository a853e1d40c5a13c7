"""People look at rows, accept or reject them, and correct them, one by one or many at once."""
