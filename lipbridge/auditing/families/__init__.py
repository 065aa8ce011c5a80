"""The families: networks whose truth is known, a file for each way in which it is."""
