"""One module per task; each holds its data sets, its cases, its scores, and the methods that stand."""
