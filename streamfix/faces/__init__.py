"""Who is in the frame, and where."""
