"""The tests, a folder for each package and one for what they share."""
