"""Images, captions and recordings of data sets."""
