import pytest
import torch

from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_mean, masked_sum, sequence_mean

NAN = float("nan")


def test_masked_entries_do_not_leak_even_if_they_are_nan_or_infinite() -> None:
    x = torch.tensor([1.0, NAN, float("inf"), 2.0], requires_grad=True)
    total = masked_sum(x * x, torch.tensor([1, 0, 0, 1]))
    total.backward()
    assert total == 5
    assert x.grad is not None
    assert x.grad[[0, 3]].tolist() == [2, 4]


def test_the_gradient_through_a_mask_is_zero_not_nan() -> None:
    x = torch.tensor([1.0, NAN], requires_grad=True)
    masked(x, torch.tensor([True, False])).exp().sum().backward()
    assert x.grad is not None
    assert x.grad[1] == 0


def test_means_by_hand() -> None:
    """Rows [1, 3] and [5]: token mean (1+3+5)/3 = 3, sequence mean (2+5)/2 = 3.5; a row without an entry is none."""
    x = torch.tensor([[1.0, 3.0], [5.0, NAN], [NAN, NAN]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    assert masked_mean(x, mask) == 3
    assert sequence_mean(x, mask) == 3.5
    assert masked_mean(x, mask, dim=1).tolist() == [2, 5, 0]


@pytest.mark.parametrize("reduction", [masked_sum, masked_mean, sequence_mean])
def test_nothing_to_reduce_gives_zero_with_a_graph(reduction) -> None:
    x = torch.full((2, 3), NAN, requires_grad=True)
    result = reduction(x, torch.zeros(2, 3))
    result.backward()
    assert result == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_dividing_by_a_count_of_zero_keeps_zero_and_takes_fractions() -> None:
    assert divided(torch.tensor(0.0), 0) == 0
    assert divided(torch.tensor(3.0), 0.5) == 6
    assert divided(torch.tensor(3.0), torch.tensor(6)) == 0.5


def test_half_precision_is_raised_and_double_kept() -> None:
    assert at_least_fp32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_fp32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
