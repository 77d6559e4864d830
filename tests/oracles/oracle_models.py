"""Small float64 networks with their closures, and the projection of a backpropagated gradient."""

import torch
import torch.nn.functional as F
from torch import nn

import hasten


class Attention(nn.Module):
    """Attention on the fast kernels, with dropout inside."""

    def __init__(self, dropout):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.dropout = dropout

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.block, self.head = (
            nn.Embedding(11, 8),
            Attention(0.0),
            nn.Linear(8, 11, bias=False),
        )
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)))


class Recurrent(nn.Module):
    """An LSTM and its last output."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def _mlp():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3))
    return model, torch.randn(6, 5), torch.randn(6, 3), F.mse_loss


def _convolution():
    head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4))
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *head)
    return model, torch.randn(5, 2, 8, 8), torch.randint(0, 4, (5,)), F.cross_entropy


def _transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3)
    return (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        torch.randn(6, 3, 8),
        torch.randn(6, 3, 8),
        F.mse_loss,
    )


def _attention():
    return (
        nn.Sequential(Attention(0.3), Attention(0.3)),
        torch.randn(3, 6, 8),
        torch.randn(3, 6, 8),
        F.mse_loss,
    )


def _tied():
    tokens = torch.randint(0, 11, (3, 6))
    return Tied(), tokens, tokens.roll(1), lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten())


def _recurrent():
    return Recurrent(), torch.randn(3, 6, 4), torch.randn(3, 2), F.mse_loss


MODELS = {
    "mlp with dropout": _mlp,
    "convolution with batch norm": _convolution,
    "transformer": _transformer,
    "attention": _attention,
    "tied embeddings": _tied,
    "lstm": _recurrent,
}


def problem(name, seed=0):
    """A float64 model and its closure."""
    torch.manual_seed(seed)
    model, x, y, loss = MODELS[name]()
    model.double()
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    return model, lambda: loss(model(x), y)


def observed(oracle, params, closure, **options):
    """What the oracle learns in the first step of an optimizer, and the optimizer."""
    opt = hasten.Optimizer(params, oracle=oracle, lr=0.1, **options)
    return oracle.observe(opt, closure), opt


def backpropagated(closure, params):
    """The gradients, and the loss; the random numbers are put back."""
    state = torch.get_rng_state()
    loss = closure()
    gradients = torch.autograd.grad(loss, params, materialize_grads=True)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    return gradients, loss.detach(), after


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def same(a, b, rtol=1e-12):
    """Whether two vectors agree relative to their length."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return bool((a - b).norm() <= rtol * max(float(b.norm()), 1e-300))
