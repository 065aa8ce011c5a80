"""Outward rounding: of scalars, of tensors, of matrices known up to an error, and factors that stay exact."""
