"""`make bench`: one row a line, `name: 8.3x  (ours 15.4 ms, plain 128 ms, median of 9 pairs)`."""
