"""Hand-derived against automatic gradients: of this package, of a student's solution, of functions of your own."""

from .own import check_backward, check_function, check_solution

__all__ = ["check_backward", "check_function", "check_solution"]
