"""An MLP in parts, of which a token visits the best ones (CMoE, Pei et al. 2025, arXiv 2502.04416).

Neurons that fire together are put into one expert: the similarity of two is the correlation of |h_i| and |h_j|, and the
parts are grown by balanced k-means on it. The neurons that give the most, E|h_c| · ‖w_c‖, are shared.
A linear router predicts how much an expert gives, Σ_c |h_c| · ‖w_c‖, by ridge regression on x. Its scores are flat:
every chosen expert counts 1 ± 1e-3, as it did in the dense MLP, and training can leave that.
"""

import torch
from torch import Tensor

# Rounds of k-means, the regression's ridge as a share of the mean eigenvalue, and the spread of the logits.
ROUNDS, RIDGE, FLAT = 20, 1e-4, 1e-3


class Split:
    """Sizes of an MLP that becomes experts, and the experts of given neurons."""

    experts: int
    width: int
    hidden: int
    inner: int
    shared: int
    gated: bool
    bias: bool
    parts: tuple[str, ...]

    def experts_of(self, given: dict[str, Tensor], slots: list[Tensor], copies: int) -> dict[str, Tensor]:
        """Fused tensors of `copies` times the experts that have the neurons of `slots`, each filled up to the width."""
        shares = len(slots)
        incoming, outgoing, biases = [], [], []
        for neurons in slots:
            rows = [self.filled(given[part][neurons]) for part in self.parts[:-1]]
            incoming.append(torch.cat(rows))
            outgoing.append(self.filled(given["down"][:, neurons].T).T)
            if self.bias:
                biases.append(torch.cat([self.filled(given[f"{part}_bias"][neurons]) for part in self.parts[:-1]]))
        made = {"in": torch.stack(incoming * copies), "down": torch.stack(outgoing * copies)}
        if self.bias:
            made["in_bias"] = torch.stack(biases * copies)
            made["down_bias"] = (given["down_bias"] / shares).expand(self.experts, -1)
        return made

    def filled(self, rows: Tensor) -> Tensor:
        """Rows of zeros up to the width of an expert."""
        return torch.cat((rows, rows.new_zeros(self.width - len(rows), *rows.shape[1:])))


def split_layer(sizes: Split, tensors: tuple[Tensor, ...], firing: Tensor) -> dict[str, Tensor]:
    """The tensors of a layer; `firing` is E[z zᵀ] of z = (x, 1, |h|)."""
    given = dict(zip((*sizes.parts, *(f"{part}_bias" for part in sizes.parts)), tensors, strict=False))
    reads, norms = sizes.hidden + 1, given["down"].double().norm(dim=0)
    mean = firing[reads - 1, reads:]
    together = firing[reads:, reads:] - mean[:, None] * mean
    gives = mean * norms
    shared = gives.topk(sizes.shared * -(-sizes.inner // (sizes.experts + sizes.shared))).indices.sort().values
    rest = torch.ones(sizes.inner, dtype=torch.bool).index_fill(0, shared, False).nonzero().flatten()
    slots = [rest[part] for part in balanced_groups(together[rest][:, rest], sizes.experts)]
    made = sizes.experts_of(given, slots, 1)
    if sizes.bias:
        made["down_bias"] = torch.zeros_like(made["down_bias"])  # every token needs all of it
    router = router_of(firing, slots, norms, reads)
    made |= {"router": router[:, :-1], "router_bias": router[:, -1]}
    if sizes.shared:
        made |= shared_of(sizes, given, shared)
    return made


def shared_of(sizes: Split, given: dict[str, Tensor], neurons: Tensor) -> dict[str, Tensor]:
    """The shared experts: one MLP of these neurons, filled up to their width."""

    def filled(rows: Tensor) -> Tensor:
        return torch.cat((rows, rows.new_zeros(sizes.shared * sizes.width - len(rows), *rows.shape[1:])))

    made = {f"shared_{part}": filled(given[part][neurons]) for part in sizes.parts[:-1]}
    made["shared_down"] = filled(given["down"][:, neurons].T).T
    if sizes.bias:
        made |= {f"shared_{part}_bias": filled(given[f"{part}_bias"][neurons]) for part in sizes.parts[:-1]}
        made["shared_down_bias"] = given["down_bias"]
    return made


def balanced_groups(gram: Tensor, count: int) -> list[Tensor]:
    """Parts of nearly the same size of `[n, n]` similarities: k-means with seats, from centres far apart."""
    scale = torch.diagonal(gram).clamp(min=1e-30).rsqrt()
    cosine = scale[:, None] * gram * scale
    centres = [int(cosine.sum(1).argmin())]
    while len(centres) < count:
        centres.append(int(cosine[:, centres].amax(1).index_fill(0, torch.tensor(centres), torch.inf).argmin()))
    likeness = cosine[:, centres]
    groups: list[Tensor] = []
    for _ in range(ROUNDS):
        before, groups = groups, seated(likeness)
        if before and all(torch.equal(a, b) for a, b in zip(before, groups, strict=True)):
            break
        # The cosine of a neuron with the mean of a group is the mean of cosines over that mean's norm.
        means = [cosine[:, group].mean(1) / cosine[group][:, group].mean().clamp(min=1e-30).sqrt() for group in groups]
        likeness = torch.stack(means, 1)
    return groups


def seated(likeness: Tensor) -> list[Tensor]:
    """Each of n rows to one of k columns that have n / k seats; who has most to lose chooses first."""
    rows, columns = likeness.shape
    seats = [rows // columns + (column < rows % columns) for column in range(columns)]
    best = likeness.topk(min(2, columns), dim=1).values
    order = (best[:, 0] - best[:, -1]).argsort(descending=True)
    groups: list[list[int]] = [[] for _ in range(columns)]
    for row in order.tolist():
        wishes = likeness[row].argsort(descending=True).tolist()
        column = next(wish for wish in wishes if len(groups[wish]) < seats[wish])
        groups[column].append(row)
    return [torch.tensor(sorted(group)) for group in groups]


def router_of(firing: Tensor, slots: list[Tensor], norms: Tensor, reads: int) -> Tensor:
    """Rows `[E, D + 1]` that predict what each expert gives, with logits that spread by `FLAT`."""
    moment, crossed = firing[:reads, :reads], firing[:reads, reads:] * norms
    targets = torch.stack([crossed[:, neurons].sum(1) for neurons in slots], 1)
    ridge = RIDGE * torch.diagonal(moment).mean() * torch.eye(reads, dtype=moment.dtype)
    rows = torch.linalg.solve(moment + ridge, targets).T
    spread = torch.einsum("ed,df,ef->e", rows, moment, rows).mean() - (rows @ moment[:, -1]).square().mean()
    return rows * (FLAT / spread.clamp(min=1e-30).sqrt())
