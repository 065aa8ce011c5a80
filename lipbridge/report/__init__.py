"""What people read: the page, its plots and its sentences."""
