"""auto_LiRPA."""
