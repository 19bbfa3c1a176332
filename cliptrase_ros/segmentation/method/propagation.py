"""Class probabilities shared among patches that correlate: the vote without clusters."""

from torch import Tensor

# Correlations that differ by one standard deviation of their image's give weights that differ by
# the factor exp(_CONTRAST). Relative, because models differ in how strongly patches correlate.
_CONTRAST = 2.0


def propagate(probability: Tensor, correlation: Tensor) -> Tensor:
    """Give each patch the mean of all patches' probabilities, weighted by how it correlates.

    The weights of patch i are the softmax over j of `_CONTRAST` x A_ij / std(A), A the denoised
    correlation. One step of label propagation (as LPOSS, arXiv 2503.19777) with the similarity of
    the last layer but one (as SC-CLIP, arXiv 2411.15869, aggregates features), which CLIPtrase
    has already computed.

    Args:
        probability: float (B, C, h, w).
        correlation: float (B, N, N), N = h w.

    Returns:
        float (B, C, h, w), with the same sum over C.
    """
    spread = correlation.flatten(1).std(1)[:, None, None].clamp(min=1e-6)
    weights = (correlation * (_CONTRAST / spread)).softmax(-1)
    grid = probability.shape[-2:]
    return (probability.flatten(2) @ weights.mT).unflatten(-1, grid)
