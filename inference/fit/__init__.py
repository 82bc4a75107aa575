"""The command ``fit``: train a task's model so that nothing is lost, and judge it on data it has not seen."""
