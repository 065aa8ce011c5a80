"""What is asked, what is answered, and who answers."""
