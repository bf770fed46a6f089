"""One process each: a script does one thing in one way and prints one line of JSON."""
