"""Raw data to tokens or bytes, and back."""
