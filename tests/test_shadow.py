"""Shadows: facets are cheap views, and nothing is lost when they are cut to what varies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effp_fx.ops import shadow


def _facet(*shape: int, dim: int = 1) -> torch.Tensor:
    return shadow.spread(torch.arange(1, shape[dim] + 1, dtype=torch.int32), dim, shape)


def test_a_facet_costs_as_much_as_what_varies() -> None:
    facet = _facet(64, 256, 56, 56)
    assert facet.untyped_storage().nbytes() == 256 * 4
    assert shadow.varying(facet) == (1,)
    assert shadow.crop(facet).shape == (1, 256, 1, 1)


def test_crop_keeps_the_dimensions_that_are_asked_for() -> None:
    assert shadow.crop(_facet(2, 3, 4), (1, 2)).shape == (1, 3, 4)
    assert shadow.crop(_facet(2, 3, 4), ()).shape == (1, 1, 1)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_a_tensor_that_happens_to_be_empty_keeps_its_channels(shape: tuple[int, ...]) -> None:
    assert shadow.flat(_facet(*shape)).tolist() == [1, 2, 3]


def test_compress_finds_what_does_not_vary() -> None:
    facet = _facet(2, 3, 4).contiguous()
    assert shadow.varying(facet) == (0, 1, 2)
    assert shadow.varying(shadow.compress(facet)) == (1,)
    assert torch.equal(shadow.compress(facet), facet)


def test_a_constant_facet_varies_nowhere() -> None:
    assert shadow.varying(shadow.compress(torch.full((2, 3), 7, dtype=torch.int32))) == ()


def test_signs() -> None:
    facet = torch.tensor([[0, 1, -2]], dtype=torch.int32).expand(4, 3)
    assert shadow.absolute(facet)[0].tolist() == [0, 1, 2]
    assert shadow.leaky(facet)[3].tolist() == [0, -1, -2]
    assert shadow.flat(facet).tolist() == [0, 1, 2]
    assert shadow.leaky(facet).shape == facet.shape


def test_ids_are_mapped_and_signs_kept() -> None:
    facet = torch.tensor([[0, 1, -2]], dtype=torch.int32).expand(4, 3)
    assert shadow.map_ids(facet, torch.tensor([0, 5, 6]))[1].tolist() == [0, 5, -6]


def test_views_of_the_same_memory_are_the_same_facet() -> None:
    facet = _facet(2, 3, 4)
    assert shadow.identity(facet) == shadow.identity(facet.expand(2, 3, 4))
    assert shadow.identity(facet) != shadow.identity(_facet(2, 3, 4))
    assert shadow.identity(facet) != shadow.identity(facet.transpose(0, 2))


def test_a_move_is_run_on_the_ids() -> None:
    moved = shadow.moved(_facet(1, 4, 2), lambda ids: ids.view(1, 2, 2, 2).transpose(1, 2).reshape(1, 4, 2))
    assert moved[0, :, 0].tolist() == [1, 3, 2, 4]
    assert shadow.varying(moved) == (1,)


def test_nothing_is_empty() -> None:
    assert shadow.is_empty(torch.zeros((), dtype=torch.int32).expand(3, 4))
    assert not shadow.is_empty(shadow.leaky(_facet(2, 3)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_crop_and_expand_give_the_facet_back(shape: list[int], data: st.DataObject) -> None:
    along = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    small = [size if dim in along else 1 for dim, size in enumerate(shape)]
    facet = torch.randint(-9, 10, small, dtype=torch.int32).expand(shape)
    assert torch.equal(shadow.crop(facet).expand(shape), facet)
    assert torch.equal(shadow.compress(facet), facet)
    assert set(shadow.varying(shadow.compress(facet))) <= set(along)
