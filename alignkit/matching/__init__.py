"""What is minimised: the objective, its relaxations, and linear assignment."""
