"""The fast path of the CPU: taken where it pays and may be taken, nowhere else; and the benchmark that measures it."""

import math
import re
from functools import partial

import pytest
import torch

import dropoutlib
from dropoutlib import benchmark
from dropoutlib.arguments import is_eager
from dropoutlib.benchmark import details, methods, timing
from dropoutlib.benchmark.__main__ import main as program
from dropoutlib.kernels import cpu
from dropoutlib.noise import Bernoulli, select

LARGE = 2**16
BOTH = ["draw_mask", "apply_mask"]


@pytest.fixture
def calls(monkeypatch):
    """The names of the kernels that were called."""
    names = []

    def spy(name, kernel, *arguments):
        names.append(name)
        return kernel(*arguments)

    for name in BOTH:
        monkeypatch.setattr(cpu, name, partial(spy, name, getattr(cpu, name)))
    return names


def drop(x):
    return select(x, Bernoulli(0.3).sample(x), 2.0)


EAGER = {
    "plain": lambda x: drop(x),
    "parameter": lambda x: drop(torch.nn.Parameter(x)),
    "bfloat16": lambda x: drop(x.bfloat16()),
    "transposed": lambda x: drop(x.view(256, -1).T),
    "no_grad": torch.no_grad()(drop),
    "inference_mode": torch.inference_mode()(drop),
}
ELSEWHERE = {
    "small": lambda x: drop(x[:100]),
    "complex": lambda x: select(x + 0j, x > 0, 2.0),
    "meta": lambda x: drop(x.to("meta")),
    "compiled": lambda x: torch.compile(drop, backend="eager", fullgraph=True)(x),
    "vmap": lambda x: torch.func.vmap(drop, randomness="different")(x[None]),
    "vmap, closed over": lambda x: torch.func.vmap(lambda y: drop(x), randomness="different")(x[None]),
    "subclass": lambda x: drop(x.as_subclass(type("Subclass", (torch.Tensor,), {}))),
    "traced": lambda x: torch.jit.trace(drop, (x,), check_trace=False),
}


@pytest.mark.parametrize("function", EAGER.values(), ids=EAGER)
def test_taken(function, calls):
    function(torch.randn(LARGE))
    assert calls == BOTH


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("function", ELSEWHERE.values(), ids=ELSEWHERE)
def test_not_taken(function, calls):
    function(torch.randn(LARGE))
    assert not calls


def test_taken_backward(calls):
    x = torch.randn(LARGE, requires_grad=True)
    drop(x).sum().backward()
    assert calls == [*BOTH, "apply_mask"]


@pytest.mark.parametrize("shape", [(3, 4, 32, 16), (2, 8, 512), (4, 4, 8, 8, 8), (1, 1, 256, 32), (2**14,)])
@pytest.mark.parametrize("drops", ["some", "all", "none", "the first", "the last"])
def test_rows_that_share_a_draw_are_scaled_as_rows(shape, drops, monkeypatch):
    rows = []
    monkeypatch.setattr(cpu, "_scaled_rows", lambda *arguments, as_rows=cpu._scaled_rows:
                        rows.append(1) or as_rows(*arguments))
    keep = torch.full((*shape[:2], *(1 for _ in shape[2:])) if len(shape) > 1 else (1,), drops != "all")
    if drops.startswith("the"):
        keep.view(-1)[-1 if drops == "the last" else 0] = False
    elif drops == "some":
        keep = torch.rand(keep.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    x = torch.randn(shape)
    x.masked_fill_(~keep & (x > 1), math.inf).masked_fill_(~keep & (x < -1), math.nan).requires_grad_()
    y = select(x, keep, 1 / 0.7)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert len(rows) == 2
    assert torch.equal(y, torch.where(keep, x * (1 / 0.7), 0))
    assert torch.equal(gradient, torch.where(keep, torch.full(shape, 1 / 0.7), 0))


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.contiguous(memory_format=torch.channels_last),
                                    lambda x: x[..., ::2], lambda x: x[..., :2, :2]],
                         ids=["float64", "channels last", "strided", "small maps"])
def test_rows_are_not_taken_elsewhere(change, monkeypatch):
    monkeypatch.setattr(cpu, "_scaled_rows", None)
    x = change(torch.randn(64, 64, 16, 16))
    keep = torch.rand(64, 64, 1, 1) < 0.5
    assert torch.equal(select(x, keep, 2.0), torch.where(keep, 2 * x, 0))


def test_tensors_are_eager_only_where_they_have_memory():
    assert is_eager(torch.zeros(3)) and is_eager(torch.zeros(()))
    assert not is_eager(torch.zeros(3).to_sparse())
    assert not is_eager(torch.zeros(3, device="meta"))


@pytest.mark.parametrize("p", [1e-4, 2**-8, 0.1, 0.25, 0.3, 2 / 3, 0.75, 0.998, 0.99999])
def test_the_parts_of_a_draw_give_the_probability(p, monkeypatch):
    """Byte and distances: one minus the product of what both leave alone."""
    parts = {"byte": 0.0, "distance": 0.0}
    monkeypatch.setattr(cpu, "_draw_rarer", lambda _, cut, *rest: parts.update(byte=cut / 256))
    monkeypatch.setattr(cpu, "_at_random_distances", lambda _, rate, *rest: parts.update(distance=rate) or [])
    cpu.draw_mask(torch.empty(LARGE), p, None)
    rarer = 1 - (1 - parts["byte"]) * (1 - parts["distance"])
    assert rarer == pytest.approx(min(p, 1 - p), rel=1e-12)


@pytest.mark.parametrize("p", [0.25, 0.3, 0.75, 0.0, 1.0])
def test_a_byte_below_the_cut_is_the_rarer_outcome(p, monkeypatch):
    cut = int(256 * min(p, 1 - p))
    monkeypatch.setattr(cpu, "_at_random_distances", lambda *_: [])
    for byte in {max(cut - 1, 0), cut, 0, 255}:
        monkeypatch.setattr(torch.Tensor, "random_",
                            lambda self, *_, generator, byte=byte: self.view(torch.int8).fill_(byte - 128))
        keep = cpu.draw_mask(torch.empty(cpu._CHUNK + 9), p, None)
        assert keep.unique().tolist() == [(byte < cut) is (p > 0.5)]


@pytest.mark.parametrize("distance", [1, 2, 7, 9_999, 10_000, 1e300, math.inf])
def test_places_lie_at_the_distances_that_were_drawn(distance, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "geometric_", lambda self, rate, generator: self.fill_(distance))
    places = torch.cat(list(cpu._at_random_distances(10_000, 0.01, torch.device("cpu"), None)))
    assert places.tolist() == list(range(int(min(distance, 10_001)) - 1, 10_000, int(min(distance, 10_001))))


@pytest.mark.parametrize("rate", [1e-4, 0.003, 0.3])
def test_every_place_is_as_likely_as_the_others(rate):
    """First, last, and in the middle; also where the distances that were drawn at first do not reach the end."""
    torch.manual_seed(0)
    draws, size = 4000, 1000
    hits = torch.zeros(size)
    for _ in range(draws):
        for places in cpu._at_random_distances(size, rate, torch.device("cpu"), None):
            hits[places] += 1
    assert abs(hits.mean().item() / draws - rate) < 6.5 * math.sqrt(rate / draws / size)
    for part in (hits[:50], hits[475:525], hits[-50:]):
        assert abs(part.mean().item() / draws - rate) < 6.5 * math.sqrt(rate / draws / 50)


@pytest.mark.parametrize("p", [0.3, 0.6, 0.004, 0.999])
def test_elements_of_a_large_mask_are_independent(p):
    """At the distances where a byte, a word and a chunk would show."""
    torch.manual_seed(0)
    keep = cpu.draw_mask(torch.empty(2**22), p, None).double()
    assert abs(keep.mean().item() - (1 - p)) < 6.5 * math.sqrt(p * (1 - p) / keep.numel())
    rest = keep - (1 - p)
    for lag in (1, 2, 7, 8, 64, cpu._CHUNK):
        pairs = rest[lag:] * rest[:-lag]
        assert abs(pairs.mean().item()) < 6.5 * p * (1 - p) / math.sqrt(pairs.numel())


@pytest.mark.parametrize("p", [5e-324, 1e-310, 1 - 2**-53])
def test_the_rarest_outcomes_there_are(p):
    keep = cpu.draw_mask(torch.empty(LARGE), p, None)
    assert keep.all() if p < 0.5 else not keep.any()


def test_every_element_has_bits_of_its_own():
    """Two draws that agree in a whole stretch would share their words."""
    keep = cpu.draw_mask(torch.empty(3 * cpu._CHUNK), 0.5, None).view(-1, 64)
    assert keep.unique(dim=0).shape == keep.shape


def test_at_one_half_every_random_bit_is_an_element(monkeypatch):
    """64 elements a word, whole words and the rest of one."""
    for size in (cpu._SMALLEST, cpu._SMALLEST + 8, 8 * cpu._CHUNK + 64 * 100 + 3):
        words = []

        def draw(self, *_, generator, words=words):
            words.append(self.copy_(torch.arange(self.numel()) * 0x9E3779B97F4A7C15 % 2**63))
            return self

        monkeypatch.setattr(torch.Tensor, "random_", draw)
        keep = cpu.draw_mask(torch.empty(size), 0.5, None)
        ones = sum(int(word) for word in torch.cat(words).view(torch.uint8).bitwise_and(1))
        planes = [part[:part.numel() // 8] for part in keep.split(8 * cpu._CHUNK) if part.numel() % 64 == 0]
        assert sum(int(plane.sum()) for plane in planes) == ones or size % 64
        assert sum(word.numel() for word in words) == sum(-(-part.numel() // 64)
                                                          for part in keep.split(8 * cpu._CHUNK))


def test_saved_for_backward_is_one_byte_an_element():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        drop(torch.randn(LARGE, requires_grad=True))
    assert [(t.numel(), t.element_size()) for t in saved] == [(LARGE, 1)]


def test_benchmark(tmp_path, capsys, monkeypatch, device):
    monkeypatch.setattr(details, "_SECONDS", 0.0)
    monkeypatch.setattr(details, "_EXPONENTS", [8, 14])
    file = tmp_path / "times.md"
    program(["--sizes", "--device", device, "--output", str(file)])
    printed = capsys.readouterr().out
    command = f"python -m dropoutlib.benchmark --sizes --device {device} --output {file}"
    assert file.read_text() == f"`{command}`\n\n{printed}"
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| Dropout, p = 0.3")]
    assert [len(cells) for cells in lines] == [3, 3]
    assert all(re.fullmatch(r" \d+\.\d+ ", cell) for cell in lines[0][1:])
    assert torch.__version__ in printed


def test_cost_of_an_element(device):
    tables = details.cost_table(device, powers=(0, 3)).split("In a second:")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for table in tables for line in table.splitlines()
            if line.startswith("| ")]
    assert rows[0] == rows[7] == ["elements", "10^0", "10^3"]
    numbers = {name: [float(cell) for cell in cells] for name, *cells in rows if name not in ("elements", "---")}
    assert len(numbers) == 8 and all(number > 0 for row in numbers.values() for number in row)
    assert numbers["x * 2"][0] > numbers["x * 2"][1] and numbers["copy, GB"][0] < numbers["copy, GB"][1]


def test_a_table_that_could_not_be_written_is_not_measured(capsys):
    with pytest.raises(SystemExit):
        program(["--output", "there/is/no/such.md"])
    assert "argument --output: there is no folder there/is/no" in capsys.readouterr().err


def test_benchmark_of_all_methods(device, monkeypatch):
    """On small inputs, a row at least for every method."""
    for name, shape in (("_ELEMENTS", (8, 8)), ("_MAPS", (2, 3, 12, 12)), ("_SEQUENCE", (3, 2, 4)), ("_BATCH", 4),
                        ("_FEATURES", 6), ("_WORDS", 20)):
        monkeypatch.setattr(methods, name, shape)
    lines = benchmark.methods_table(device, seconds=0.0).splitlines()
    times, memory = lines[4:lines.index("Memory in MiB:") - 1], lines[lines.index("Memory in MiB:") + 4:]
    for part, columns in ((times, 4), (memory, 5)):
        rows = {cells[0]: cells[1:] for cells in ([cell.strip("` ") for cell in line.split("|")[1:-1]]
                                                  for line in part)}
        assert all(len(cells) == columns and all(re.fullmatch(r"\d+\.\d+|–", cell) for cell in cells)
                   for cells in rows.values())
    named = {re.match(r"\w+", name)[0] for name in rows}
    layers = {fact.name for row in dropoutlib.catalogue().values() for fact in row.facts}
    assert named <= layers
    without = {name for name, row in dropoutlib.catalogue().items() if not named & {fact.name for fact in row.facts}}
    recurrent = {name for name, row in dropoutlib.catalogue().items() if row.part == "recurrent"}
    assert without - recurrent == {  # without layers
        "max_norm", "mc_dropout", "attention_dropout", "rate_schedule", "r_drop_loss", "graph_dropout"}


def test_the_composition_is_what_the_layer_does(device, monkeypatch):
    """Same mean over many draws, where both are inverted: a wrong composition would be compared in vain."""
    monkeypatch.setattr(methods, "_MAPS", (8000, 3, 8, 8))
    torch.manual_seed(0)
    for cases in (methods._on_elements, methods._on_maps):
        for case in cases(device):
            x = torch.full_like(case.x, 1.5)
            for name, function in case.variants().items():
                if name != "floor" and not re.match("LogNormal|MaxDrop|Cutout", case.name):
                    with torch.no_grad():
                        assert function(x).mean().item() == pytest.approx(case.layer(x).mean().item(), rel=0.03), name


def test_memory_of_a_pass(device):
    """A product keeps what it is multiplied with; the output and its gradient are there at once."""
    x, factor = torch.randn(1000, device=device, requires_grad=True), torch.rand(1000, device=device)
    found = timing.allocated(lambda x: x * (factor + 1), x)
    assert found.kept == 4000 and 12000 <= found.peak <= 17000
    forward = timing.allocated(lambda x: x * 2, x, backward=False)
    assert forward.kept == 0 and 4000 <= forward.peak <= 4600


def test_the_program_names_what_it_cannot_do(capsys):
    for arguments, words in ((["--only", "nothing"], "only has to be part of the name of a layer, but got 'nothing'"),
                             (["--only", "Pool", "--maps"], "--only chooses among all methods"),
                             (["--maps", "--sizes"], "not allowed with argument")):
        with pytest.raises(SystemExit):
            program(arguments)
        assert words in capsys.readouterr().err


def test_benchmark_of_dropconnect(device):
    lines = benchmark.dropconnect_table(device, batch=4, features=8, rounds=2).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    assert {(name, p) for name, p, _, _ in rows} == {
        (name, p) for p in ("0.5", "0.3")
        for name in ("`einsum`, masks in memory", "`DropConnectLinear`", '`DropConnectLinear(sharing="batch")`')}
    assert all(ratio == "1.0" for name, _, _, ratio in rows if "einsum" in name)
    assert torch.__version__ in lines[0]


def test_benchmark_of_recurrent_layers(device):
    lines = benchmark.recurrent_table(device, sizes=[(3, 2, 4), (2, 2, 3)], rounds=2).splitlines()
    assert lines[0].startswith(f"torch {torch.__version__}")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert all(len(row) == 5 and all(re.fullmatch(r"\d+\.\d+", cell) for cell in row[1:]) for row in rows)
    assert [row[2] for row in rows if row[0] in ("`nn.LSTM`", "`nn.GRU`")] == ["1.00", "1.00"]
    assert len(rows) == 2 + 2 + 11


def test_benchmark_of_predictions(device):
    lines = benchmark.prediction_table(device, samples=3, batch=2, channels=2, rounds=2).splitlines()
    assert "3 samples of 2 examples, 2 and 4 channels" in lines[0]
    for row in lines[4:]:
        *times, ratio = row.strip("| ").split(" | ")[1:]
        assert all(float(time) > 0 for time in times) and float(ratio) > 0
    assert len(lines) == 6


def test_benchmark_on_maps(device):
    lines = benchmark.maps_table(device, shapes=[(2, 3, 4, 4)], rounds=2).splitlines()
    assert lines[0].startswith(f"torch {torch.__version__}")
    assert len(lines) == 2 + 2 + 8 and all("2 x 3 x 4 x 4" in line for line in lines[4:])
    assert all(re.fullmatch(r" \d+\.\d+ ", cell) for line in lines[4:] for cell in line.split("|")[4:6])
