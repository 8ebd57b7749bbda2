"""ETAs and the reasons why jobs wait. No HTTP."""
