"""Training: degradations, data, losses, the trainers."""
