"""Differentiable blocks: tensors in, tensors out."""
