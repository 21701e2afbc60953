"""What a model asks of a machine before it is trained or served: roofline, tiles, textbook answers, pictures."""
