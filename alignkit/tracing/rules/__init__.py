"""What each op does to labels: the table of rules, and the built-in rules in files by what ops do to axes."""
