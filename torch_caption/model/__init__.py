"""The captioner and its recurrent cells."""
