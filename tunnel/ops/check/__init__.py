"""What would go wrong, and what does: ``tunnel check`` and ``tunnel doctor``."""
