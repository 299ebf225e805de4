"""Which videos there are, where they lie, and which of them are held out."""
