"""What pages show, worked out without any page: sentences, rows, series. Plain functions of values and texts."""
