"""The audit: networks whose truth is known, put to every verifier; a claim that the truth contradicts is a finding."""
