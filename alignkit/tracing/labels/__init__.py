"""Labels of tensor elements, and the constraints that relate them."""
