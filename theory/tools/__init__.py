"""Tools of the proofs: steps, balls, formats, codes. No theorem is stated here."""
