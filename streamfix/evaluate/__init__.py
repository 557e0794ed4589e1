"""How good a result is: metrics on faces and on video, tables, picture strips."""
