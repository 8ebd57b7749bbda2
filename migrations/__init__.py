"""The schema's history: numbered migrations, each with its way back."""
