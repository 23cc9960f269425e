"""Where units can be seen while a model runs, and the moments of what they do."""
