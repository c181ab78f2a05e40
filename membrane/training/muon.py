"""The optimizer: Muon for the convolutions' kernels, Adam for what is no matrix.

Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon) takes the momentum of a weight
matrix to the nearest matrix whose singular values are all near one, so that a step moves every
direction alike, also those that the gradient hardly favours. Keras' own Muon does so with
two-dimensional weights only, of which this network has none; here a convolution's kernel
(height, width, in, out) counts as a matrix (height * width * in, out).
"""

import math

import keras
from keras import ops

ADAM_SHARE = 0.3  # of the learning rate, for biases and the kernels of one channel
EPSILON = 1e-7
STEP = 0.2  # root mean square of a kernel's step at learning rate 1, about that of Adam


class Muon(keras.optimizers.Optimizer):
    """Muon with Nesterov momentum, in [0, 1); the learning rate is a number or a schedule."""

    def __init__(self, learning_rate, momentum: float = 0.95, name: str = "muon"):
        super().__init__(learning_rate=learning_rate, name=name)
        self.momentum = momentum

    def build(self, variables):
        """Creates a momentum per variable and, for Adam, the mean square of its gradients."""
        if self.built:
            return
        super().build(variables)
        self.means = [self.add_variable_from_reference(v, name="mean") for v in variables]
        self.squares = [
            None if _is_matrix(v) else self.add_variable_from_reference(v, name="square")
            for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Takes one step."""
        index = self._get_variable_index(variable)
        mean, square = self.means[index], self.squares[index]
        if square is None:
            self.assign(mean, self.momentum * mean + gradient)
            direction = orthogonalise(gradient + self.momentum * mean)
            longest = max(math.prod(variable.shape[:-1]), variable.shape[-1])
            self.assign_sub(variable, learning_rate * STEP * math.sqrt(longest) * direction)
            return
        step = ops.cast(self.iterations + 1, variable.dtype)
        first, second = 0.9, 0.999
        self.assign(mean, first * mean + (1 - first) * gradient)
        self.assign(square, second * square + (1 - second) * ops.square(gradient))
        rate = ADAM_SHARE * learning_rate * ops.sqrt(1 - second**step) / (1 - first**step)
        self.assign_sub(variable, rate * mean / (ops.sqrt(square) + EPSILON))


def orthogonalise(kernel):
    """Returns a kernel, float (height, width, in, out), with singular values in about [0.7, 1.2].

    They are those of the kernel as a matrix, brought there by Newton-Schulz iteration.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # x → ax + bx³ + cx⁵ pulls singular values towards 1
    x = ops.reshape(kernel, (-1, kernel.shape[-1]))
    tall = x.shape[0] > x.shape[1]
    x = ops.transpose(x) if tall else x
    x = x / (ops.norm(x) + EPSILON)
    for _ in range(5):
        gram = x @ ops.transpose(x)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return ops.reshape(ops.transpose(x) if tall else x, kernel.shape)


def _is_matrix(variable) -> bool:
    """Whether a variable is a kernel between several channels and several."""
    return len(variable.shape) == 4 and min(variable.shape[2:]) > 1
