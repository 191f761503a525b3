"""The group penalty of a session: what it adds, until when, and that it is resumed."""

import torch

from effp_fx.session.shrinking import Shrinking, owned
from tests.session_run import STEPS, attached, batch, net, sgd, train


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_what_is_added_points_away_from_each_channel_with_the_strength_that_was_asked_for() -> None:
    model = net()
    session = attached(model, sgd(model))
    shrinking = Shrinking(session.analysis, dict(model.named_parameters()), 0.25)
    images, labels = batch(0)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    before, norms = gradients(model), shrinking.norms()
    shrinking.press(session.keep, 0)
    assert shrinking.length is not None and shrinking.length > 0
    places = dict(owned(session.analysis))
    for name, gradient in gradients(model).items():
        if name not in places:
            assert torch.equal(gradient, before[name])
            continue
        dim, value = places[name], model.get_parameter(name).detach()
        for index, channel in enumerate(session.analysis.tensors[name].dims[dim]):
            if channel >= 0:
                added = (gradient - before[name]).select(dim, index)
                wanted = 0.25 * shrinking.length * value.select(dim, index) / norms[channel]
                torch.testing.assert_close(added, wanted.to(added), rtol=1e-3, atol=1e-6)


def test_the_steps_between_are_made_up_for() -> None:
    """What is added at every fourth step is four times as long, and nothing is added at the others."""
    model = net()
    session = attached(model, sgd(model))
    images, labels = batch(0)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    before = gradients(model)
    once, seldom = (Shrinking(session.analysis, dict(model.named_parameters()), 0.25, every=every) for every in (1, 4))
    seldom.press(session.keep, 3)
    assert all(torch.equal(value, before[name]) for name, value in gradients(model).items())
    once.press(session.keep, 3)
    added = {name: value - before[name] for name, value in gradients(model).items()}
    for name, value in model.named_parameters():
        assert value.grad is not None
        value.grad.copy_(before[name])
    seldom.press(session.keep, 4)
    for name, value in gradients(model).items():
        torch.testing.assert_close(value - before[name], 4 * added[name], rtol=1e-3, atol=1e-6)


def test_a_session_shrinks_until_its_mask_is_fixed_and_goes_on_where_it_was() -> None:
    ends = []
    for stop in (STEPS, STEPS // 3):
        model = net()
        optimizer = sgd(model)
        session = attached(model, optimizer, shrink=0.1)
        for _ in train(model, optimizer, range(stop)):
            continue
        if stop < STEPS:
            saved = session.state_dict()
            session.close()
            session = attached(model, optimizer, shrink=0.1)
            session.load_state_dict(saved)
            for _ in train(model, optimizer, range(stop, STEPS)):
                continue
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    plain = net()
    optimizer = sgd(plain)
    attached(plain, optimizer, shrink=0.0)
    for _ in train(plain, optimizer, range(STEPS)):
        continue
    assert any(not torch.equal(value, ends[0][name]) for name, value in plain.state_dict().items())
