"""Jobs: what people use alignments for, one file each."""
