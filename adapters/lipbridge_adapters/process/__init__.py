"""Other verifiers as processes of their own."""
