"""What is measured while a run trains, and where it is logged."""
