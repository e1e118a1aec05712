"""What users do with modules of torch.nn: copies, parametrizations, pruning, shared weights, replicas, processes.

The tests of torch.nn's own recurrent modules (test_nn.py, test_modules.py, test_pruning.py, test_packed_sequence.py in
torch's repository) that do not concern cuDNN have a counterpart here, in test_torch_nn.py, test_layer_arguments.py,
test_layer_weights.py, test_layer_gradients.py or test_packed_sequences.py.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from torch_caption import layers

SEQUENCES = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
NAMES = (*SEQUENCES, *CELLS)
T, N, D, H = 4, 3, 2, 5


def new(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(layers, name)(D, H, **{"dtype": torch.float64, **options})


def input_of(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (N, D) if name in CELLS else (T, N, D)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def call(name: str, module: nn.Module) -> Tensor:
    """The first output; of a cell from a state that is not zero, so that all weights have a gradient."""
    x = input_of(name)
    state = 0.5 * x.new_ones(N, H)
    hx = {"LSTMCell": ((state, state),), "RNNCell": (state,), "GRUCell": (state,)}.get(name, ())
    return output(module(x, *hx))


def weight_of(name: str) -> str:
    return "weight_hh" if name in CELLS else "weight_hh_l0"


def output(out: Any) -> Tensor:
    """The first tensor of a result."""
    return out if isinstance(out, Tensor) else output(out[0])


def expected(name: str, module: nn.Module, **options: Any) -> Tensor:
    """The output of torch.nn's module with the weights that `module` has now."""
    theirs = getattr(nn, name)(D, H, dtype=torch.float64, **options)
    theirs.load_state_dict({key: getattr(module, key).detach() for key in theirs.state_dict()})
    return call(name, theirs)


def assert_as_torch(name: str, module: nn.Module, **options: Any) -> None:
    torch.testing.assert_close(call(name, module), expected(name, module, **options), rtol=0, atol=1e-12)


# Copies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str, again: Callable) -> None:
    module = new(name)
    other = again(module)
    assert torch.equal(call(name, other), call(name, module))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert_as_torch(name, module)
    assert_as_torch(name, other)


@pytest.mark.parametrize("name", NAMES)
def test_dtype_and_device(name: str) -> None:
    module = new(name).float()
    assert output(module(input_of(name).float())).dtype == torch.float32
    module = new(name).to("meta")
    out = output(module(input_of(name).to("meta")))
    assert (out.device.type, out.shape) == ("meta", output(new(name)(input_of(name))).shape)


@pytest.mark.parametrize("name", NAMES)
def test_weights_without_values(name: str) -> None:
    cls, source = getattr(layers, name), new(name)
    with torch.device("meta"):
        module = cls(D, H, dtype=torch.float64)
    module.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert_as_torch(name, module)
    skipped = nn.utils.skip_init(cls, D, H, dtype=torch.float64)
    skipped.load_state_dict(source.state_dict())
    assert_as_torch(name, skipped)


@pytest.mark.parametrize("name", SEQUENCES)
def test_names_of_torch(name: str) -> None:
    module = new(name, num_layers=2, bidirectional=True)
    module.flatten_parameters()
    assert [len(weights) for weights in module.all_weights] == [4, 4, 4, 4]
    assert module.all_weights[1][0] is module.weight_ih_l0_reverse
    assert isinstance(module, nn.RNNBase)
    nonlinearity = ["relu"] if name == "RNN" else []
    args = [D, H, 3, *nonlinearity, False, True, 0.5, True, *([2] if name == "LSTM" else [])]  # all, by position
    assert repr(getattr(layers, name)(*args)) == repr(getattr(nn, name)(*args))


# Other weights than parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("name", NAMES)
def test_parametrizations(name: str, norm: str) -> None:
    module, weight = new(name), weight_of(name)
    getattr(parametrizations, norm)(module, weight)
    module.eval()  # spectral_norm's power iteration changes its state in training
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1 if norm == "orthogonal" else 1.1)  # which reads signs from its diagonal
    assert_as_torch(name, module)
    call(name, module).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    again = copy.deepcopy(module)
    assert torch.equal(call(name, again), call(name, module))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_older_weight_norm(name: str) -> None:
    module, weight = new(name), weight_of(name)
    torch.nn.utils.weight_norm(module, weight)
    with torch.no_grad():
        getattr(module, f"{weight}_g").mul_(2)
    call(name, module).sum().backward()
    assert_as_torch(name, module)
    assert getattr(module, f"{weight}_g").grad.abs().sum() > 0
    torch.nn.utils.remove_weight_norm(module, weight)
    assert_as_torch(name, module)


@pytest.mark.parametrize("name", NAMES)
def test_pruning(name: str) -> None:
    module, weight = new(name), weight_of(name)
    prune.l1_unstructured(module, weight, amount=0.5)
    assert (getattr(module, weight) == 0).sum() > 0
    assert_as_torch(name, module)
    call(name, module).sum().backward()
    gradient = getattr(module, f"{weight}_orig").grad
    assert torch.equal(gradient == 0, getattr(module, f"{weight}_mask") == 0)
    prune.remove(module, weight)
    assert_as_torch(name, module)


@pytest.mark.parametrize("kind", ["buffer", "plain tensor", "computed"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_no_parameters(name: str, kind: str) -> None:
    """As of weight drop, hypernetworks and frozen weights."""
    module, weight = new(name), weight_of(name)
    value = getattr(module, weight).detach()
    delattr(module, weight)
    source = torch.ones((), dtype=torch.float64, requires_grad=True)
    if kind == "buffer":
        module.register_buffer(weight, 2 * value)
    else:
        setattr(module, weight, 2 * value if kind == "plain tensor" else source * 2 * value)
    assert_as_torch(name, module)
    if kind == "computed":
        call(name, module).sum().backward()
        assert source.grad is not None
        assert source.grad != 0


@pytest.mark.parametrize("name", SEQUENCES)
def test_tied_weights(name: str) -> None:
    """Layers that share a weight add their gradients to it."""
    options = {"num_layers": 2}
    module, untied = new(name, **options), new(name, **options)
    module.weight_hh_l1 = module.weight_hh_l0
    with torch.no_grad():
        untied.weight_hh_l1.copy_(untied.weight_hh_l0)
    for each in (module, untied):
        call(name, each).sum().backward()
    total = untied.weight_hh_l0.grad + untied.weight_hh_l1.grad
    torch.testing.assert_close(module.weight_hh_l0.grad, total, rtol=0, atol=1e-12)
    assert len(list(module.parameters())) == len(list(untied.parameters())) - 1


@pytest.mark.parametrize("name", NAMES)
def test_other_weights_for_one_call(name: str) -> None:
    """Also of another dtype than the module's own."""
    module = new(name)
    single = {key: p.detach().float() for key, p in module.named_parameters()}
    out = output(torch.func.functional_call(module, single, (input_of(name).float(),)))
    torch.testing.assert_close(out, output(module(input_of(name))).float(), rtol=0, atol=1e-5)
    assert all(p.dtype == torch.float64 for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_with_a_parameter_of_its_own(name: str) -> None:
    class Scaled(getattr(layers, name)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(D, H, dtype=torch.float64)
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, *args: Any) -> Tensor:  # type: ignore[override]
            return self.scale * output(super().forward(*args))

    module = Scaled()
    call(name, module).sum().backward()
    assert module.scale.grad is not None
    torch.testing.assert_close(call(name, module), 2 * expected(name, module), rtol=0, atol=1e-12)


# Replicas and processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_replicas_of_data_parallel(name: str) -> None:
    """Each has plain tensors in the place of its parameters, as torch.nn.parallel.replicate makes them."""
    module = new(name)
    replica = module._replicate_for_data_parallel()
    for key, p in module.named_parameters():
        replica._parameters.pop(key, None)
        setattr(replica, key, 2 * p)
    call(name, replica).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    torch.testing.assert_close(call(name, replica), expected(name, replica), rtol=0, atol=1e-12)
    assert_as_torch(name, module)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*returned a view tensor")  # FSDP2: sequences (T, N, H) are views of rows
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP2"])
@pytest.mark.parametrize("name", NAMES)
def test_wrappers_for_many_processes(name: str, wrapper: str) -> None:
    module, alone = new(name), new(name)
    if wrapper == "DDP":
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(module)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    for each in (wrapped, alone):
        call(name, each).square().sum().backward()
    for key, p in module.named_parameters():
        found = p.grad.full_tensor() if wrapper == "FSDP2" else p.grad  # type: ignore[union-attr]
        torch.testing.assert_close(found, alone.get_parameter(key).grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_shared_memory(name: str) -> None:
    module = new(name).share_memory()
    assert all(p.is_shared() for p in module.parameters())
    assert_as_torch(name, module)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    """float32 weights and inputs; the backward outside of it."""
    module = new(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = output(module(input_of(name).float()))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    exact, x = new(name), input_of(name)
    output(exact(x)).square().sum().backward()
    for key, p in exact.named_parameters():
        found = module.get_parameter(key).grad
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), p.grad, rtol=0, atol=0.05 * p.grad.abs().max().item())


# Calls ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENCES)
def test_padded_lengths(name: str) -> None:
    """As the packed sequences; a length may be 0, whose last state is the initial one."""
    module = new(name, bidirectional=True, num_layers=2)
    x, lengths = input_of(name), torch.tensor([2, 0, 4])
    out, last = module(x, lengths=lengths)
    packed = pack_sequence([x[:2, 0], x[:4, 2]], enforce_sorted=False)
    wanted, wanted_last = module(packed)
    padded, _ = pad_packed_sequence(wanted)
    assert torch.equal(out[:, 1], torch.zeros_like(out[:, 1]))
    torch.testing.assert_close(out[:, [0, 2]], padded, rtol=0, atol=1e-12)
    for found, wanted in zip(*((s,) if isinstance(s, Tensor) else s for s in (last, wanted_last)), strict=True):
        torch.testing.assert_close(found[:, [0, 2]], wanted, rtol=0, atol=1e-12)
        assert torch.equal(found[:, 1], torch.zeros_like(found[:, 1]))


@pytest.mark.parametrize("name", SEQUENCES)
def test_lengths_where_they_cannot_be_read(name: str) -> None:
    """Under vmap; both directions, two layers."""
    module = new(name, bidirectional=True, num_layers=2)
    x = torch.stack([input_of(name), 2 * input_of(name)])
    lengths = torch.tensor([[2, 0, 4], [4, 1, 3]])

    def flat(x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        out, last = module(x, lengths=lengths)
        return (out, last) if isinstance(last, Tensor) else (out, *last)

    found = torch.func.vmap(flat)(x, lengths)
    for k in range(2):
        for part, wanted in zip(found, flat(x[k], lengths[k]), strict=True):
            torch.testing.assert_close(part[k], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_packed_output_has_the_order_of_the_input(name: str) -> None:
    packed = pack_sequence([input_of(name)[:n, 0] for n in (1, 3, 2)], enforce_sorted=False)
    out, _ = new(name)(packed)
    assert isinstance(out, PackedSequence)
    assert out.sorted_indices is packed.sorted_indices
    assert out.batch_sizes is packed.batch_sizes
    _, lengths = pad_packed_sequence(out)
    assert lengths.tolist() == [1, 3, 2]


@pytest.mark.parametrize("name", SEQUENCES)
def test_bad_calls(name: str) -> None:
    module, x = new(name), input_of(name)
    packed = pack_sequence([x[:2, 0]])
    state = torch.zeros(1, N, H, dtype=torch.float64)
    hx = (state, state) if name == "LSTM" else state
    wrong = (state, state[:, 1:]) if name == "LSTM" else state[:, 1:]
    cases: list[tuple[type[Exception], str, Callable]] = [
        (ValueError, "a PackedSequence has its own lengths", lambda: module(packed, lengths=torch.tensor([2]))),
        (ValueError, "lengths need a batch axis", lambda: module(x[:, 0], lengths=torch.tensor([2]))),
        (IndexError, r"lengths\[1\] is 5, but x has 4 timesteps", lambda: module(x, lengths=torch.tensor([1, 5, 2]))),
        (ValueError, "Expected input to be 2D or 3D", lambda: module(x[None])),
        (RuntimeError, "Expected 2, got 1", lambda: module(x[..., :1])),
        (ValueError, "does not match weight dtype", lambda: module(x.float())),
        (RuntimeError, "For unbatched 2-D input, hx should also be 2-D", lambda: module(x[:, 0], hx)),
        (RuntimeError, r"Expected hidden.* size \(1, 3, 5\), got \[1, 2, 5\]", lambda: module(x, wrong)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize("name", SEQUENCES)
def test_dropout(name: str) -> None:
    """Between layers alone, in training alone; with 1.0 the second layer reads zeros."""
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        assert_as_torch(name, new(name, dropout=0.5))
    module = new(name, num_layers=2, dropout=1.0)
    zeros = getattr(layers, name)(H, H, dtype=torch.float64)
    zeros.load_state_dict({key.replace("_l1", "_l0"): w for key, w in module.state_dict().items() if "_l1" in key})
    assert torch.equal(call(name, module), output(zeros(torch.zeros(T, N, H, dtype=torch.float64))))
    assert_as_torch(name, module.eval(), num_layers=2)
    for bad in (-0.1, 1.5, True, "a"):
        with pytest.raises((ValueError, TypeError)):
            new(name, dropout=bad)


def test_what_only_an_lstm_has() -> None:
    for name in ("RNN", "GRU"):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            new(name, proj_size=2)
        with pytest.raises(TypeError, match="unexpected keyword argument 'projection'"):
            new(name, projection=2)
    with pytest.raises(ValueError, match="proj_size has to be smaller"):
        new("LSTM", proj_size=H)
    with pytest.raises(ValueError, match="nonlinearity"):
        new("RNN", nonlinearity="sigmoid")
    with pytest.raises(RuntimeError, match="nonlinearity"):
        new("RNNCell", nonlinearity="sigmoid")(input_of("RNNCell"))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_nobody_asked_for_is_not_computed(name: str) -> None:
    module = new(name).requires_grad_(False)
    x = input_of(name).requires_grad_()
    output(module(x)).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in module.parameters())
    assert not output(module(x.detach())).requires_grad
