"""Train the demo Llama, which turns the description of a drawn scene into JSON, and write it as GGUF."""

import argparse
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from llama_cpp import Llama
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.demo.llama_gguf import write_gguf
from models.demo.llama_text import (
    BEGIN,
    END_OF_TURN,
    Example,
    chat_prefix,
    chat_turn,
    copying_example,
    structure_prompt,
    train_tokenizer,
    training_example,
    training_prompt,
    wanted_answer,
)
from models.demo.muon import Muon
from models.demo.scenes import random_scene

HERE = Path(__file__).parent
STATE_PATH = HERE / ".training" / "llama.pt"
GGUF_PATH = HERE / "llama" / "llama.gguf"
SEED = 20
BATCH_SIZE = 32
COPYING_PART = 0.12  # the share of the training time, at its start, for copying alone
POOL_BATCHES = 16  # batches drawn together and sorted by length, so that there is little padding
WARM_UP_STEPS = 60
DECAY_FROM = 0.4  # the share of the training time after which the learning rate falls to zero
MATRIX_LEARNING_RATE = 0.0065
OTHER_LEARNING_RATE = 4e-3
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, under the names that GGUF uses."""

    vocabulary_size: int
    context_length: int = 2048
    embedding_length: int = 128
    block_count: int = 4
    head_count: int = 4
    feed_forward_length: int = 384
    rope_freq_base: float = 10_000.0
    rms_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.embedding_length // self.head_count


class Block(nn.Module):
    """One Llama layer: causal self-attention with rotary positions, then SwiGLU, both pre-normalised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.embedding_length, shape.feed_forward_length
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(width))
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, width, bias=False)
        self.attn_v = nn.Linear(width, width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.Parameter(torch.ones(width))
        self.ffn_gate = nn.Linear(width, inner, bias=False)
        self.ffn_up = nn.Linear(width, inner, bias=False)
        self.ffn_down = nn.Linear(inner, width, bias=False)
        for linear in (self.attn_output, self.ffn_down):
            nn.init.zeros_(linear.weight)

    def forward(self, hidden: Tensor, rotation: Tensor, prefix_length: int, rows: int) -> Tensor:
        """hidden, rotation: as Network.forward lays them out, the prefix first and then `rows` equally long rows."""
        normed = F.rms_norm(hidden, self.attn_norm.shape, self.attn_norm, self.shape.rms_epsilon)
        query = self._rotate(self.attn_q(normed), rotation)
        key = self._rotate(self.attn_k(normed), rotation)
        value = self._heads(self.attn_v(normed))
        hidden = hidden + self.attn_output(attend(query, key, value, prefix_length, rows))
        normed = F.rms_norm(hidden, self.ffn_norm.shape, self.ffn_norm, self.shape.rms_epsilon)
        return hidden + self.ffn_down(F.silu(self.ffn_gate(normed)) * self.ffn_up(normed))

    def _heads(self, flat: Tensor) -> Tensor:
        return flat.view(len(flat), self.shape.head_count, self.shape.head_size)

    def _rotate(self, flat: Tensor, rotation: Tensor) -> Tensor:
        """Rotate each pair of neighbouring features by its angle: the pairing of Meta's code and of llama.cpp."""
        pairs = torch.view_as_complex(self._heads(flat).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotation[:, None]).flatten(-2)


def attend(query: Tensor, key: Tensor, value: Tensor, prefix_length: int, rows: int) -> Tensor:
    """Causal attention of a prefix to itself and of each row to the prefix and itself.

    query, key, value: (prefix_length + rows * row_length, heads, head_size). Returns the same with heads joined.
    """

    def split(flat: Tensor) -> tuple[Tensor, Tensor]:
        of_rows = flat[prefix_length:].unflatten(0, (rows, -1))
        return flat[None, :prefix_length].transpose(1, 2), of_rows.transpose(1, 2)

    (query_prefix, query_rows), (key_prefix, key_rows), (value_prefix, value_rows) = map(split, (query, key, value))
    prefix = F.scaled_dot_product_attention(query_prefix, key_prefix, value_prefix, is_causal=True)
    length = query_rows.shape[2]
    seen = torch.ones(length, prefix_length + length, dtype=torch.bool).tril(prefix_length)
    of_rows = F.scaled_dot_product_attention(
        query_rows,
        torch.cat((key_prefix.expand(rows, -1, -1, -1), key_rows), 2),
        torch.cat((value_prefix.expand(rows, -1, -1, -1), value_rows), 2),
        attn_mask=seen,
    )
    return torch.cat([part.transpose(1, 2).flatten(0, 1).flatten(1) for part in (prefix, of_rows)])


class Network(nn.Module):
    """A Llama whose input and output embeddings are one matrix, computing rows that share a prefix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(shape.vocabulary_size, shape.embedding_length) * 0.05)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.block_count))
        self.output_norm = nn.Parameter(torch.ones(shape.embedding_length))
        exponents = torch.arange(0, shape.head_size, 2) / shape.head_size
        angles = torch.outer(torch.arange(shape.context_length), shape.rope_freq_base**-exponents)
        self.register_buffer("rotations", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, prefix: Tensor, rows: Tensor) -> Tensor:
        """Normed hidden states (rows, length, width) of `rows` (rows, length), all of them after `prefix` (n,)."""
        count, length = rows.shape
        positions = torch.arange(len(prefix), len(prefix) + length).repeat(count)
        rotation = self.rotations[torch.cat((torch.arange(len(prefix)), positions))]
        hidden = F.embedding(torch.cat((prefix, rows.flatten())), self.token_embd)
        for block in self.blk:
            hidden = block(hidden, rotation, len(prefix), count)
        hidden = hidden[len(prefix) :].view(count, length, -1)
        return F.rms_norm(hidden, self.output_norm.shape, self.output_norm, self.shape.rms_epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.token_embd.T


@dataclass(frozen=True)
class Batch:
    """Rows that share a prefix. prefix: (n,) token ids; rows: (batch, length); scored: (batch, length), the answers."""

    prefix: Tensor
    rows: Tensor
    scored: Tensor


def copying_batches(done: float) -> int:
    """How many batches of a pool are copying alone: all at first, then half, few at the end."""
    if done < COPYING_PART:
        return POOL_BATCHES
    return round(POOL_BATCHES * max(0.1, 0.6 - done))


def draw_batches(tokenizer: Tokenizer, pool: int, copying: int) -> list[Batch]:
    """The POOL_BATCHES batches of a pool, always the same for its number, `copying` of them of short conversations.

    Those only ask for the printed word. From these the network learns to copy letters within minutes; from whole
    answers, with their many other tokens, it does not, and without copying alone it soon forgets.
    """
    rng = random.Random(f"{SEED}/{pool}")
    short = draw_rows(tokenizer, [copying_example(rng) for _ in range(BATCH_SIZE * copying)])
    whole = draw_rows(tokenizer, [training_example(rng) for _ in range(BATCH_SIZE * (POOL_BATCHES - copying))])
    rows = short + whole
    batches = []
    for start in range(0, len(rows), BATCH_SIZE):
        bare = start < len(short) and rng.random() < 0.5
        prefix = tokenizer.encode(BEGIN if bare else chat_prefix(training_prompt(rng))).ids
        batches.append(make_batch(prefix, rows[start : start + BATCH_SIZE]))
    rng.shuffle(batches)
    return batches


def draw_rows(tokenizer: Tokenizer, examples: list[Example]) -> list[tuple[list[int], list[int]]]:
    """The token ids of each conversation after its system message and of its answer, the shortest first."""
    asked = tokenizer.encode_batch([chat_turn(example.description) for example in examples])
    answered = tokenizer.encode_batch([example.answer + END_OF_TURN for example in examples])
    pairs = [(one.ids, other.ids) for one, other in zip(asked, answered, strict=True)]
    return sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))


def make_batch(prefix: list[int], pairs: list[tuple[list[int], list[int]]]) -> Batch:
    length = max(len(asked) + len(answer) for asked, answer in pairs)
    rows = torch.zeros(len(pairs), length, dtype=torch.long)
    scored = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (asked, answer) in enumerate(pairs):
        rows[row, : len(asked) + len(answer)] = torch.tensor(asked + answer)
        scored[row, len(asked) : len(asked) + len(answer)] = True
    return Batch(torch.tensor(prefix), rows, scored)


def answer_loss(model: Network, batch: Batch) -> tuple[Tensor, float]:
    """Mean cross-entropy over the answers' tokens, and the share of answers with every token right."""
    hidden = model(batch.prefix, batch.rows[:, :-1])
    scored = batch.scored[:, 1:]
    logits = model.logits(hidden[scored])
    wanted = batch.rows[:, 1:][scored]
    wrong = torch.zeros(scored.shape, dtype=torch.bool).masked_scatter(scored, logits.argmax(1) != wanted)
    return F.cross_entropy(logits, wanted), 1 - wrong.any(1).float().mean().item()


class Training:
    """Everything that a stopped training needs to resume: weights, optimizers, step and seconds spent."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.tokenizer = train_tokenizer(SEED)
        self.model = Network(Shape(self.tokenizer.get_vocab_size()))
        matrices = list(self.model.blk.parameters())
        others = [self.model.token_embd, self.model.output_norm, *(p for p in matrices if p.ndim == 1)]
        self.optimizers = (
            Muon([p for p in matrices if p.ndim == 2], MATRIX_LEARNING_RATE),
            torch.optim.AdamW(others, OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.base_rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0
        self.seconds = 0.0

    def save(self) -> None:
        STATE_PATH.parent.mkdir(exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "tokenizer": self.tokenizer.to_str(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, STATE_PATH.with_suffix(".part"))
        STATE_PATH.with_suffix(".part").replace(STATE_PATH)

    def load(self) -> None:
        state = torch.load(STATE_PATH)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.tokenizer = Tokenizer.from_str(state["tokenizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def learn(self, batch: Batch, done: float) -> tuple[float, float]:
        """One step at the learning rate that belongs to `done`, the share of the training time already spent."""
        factor = min(1.0, (self.step + 1) / WARM_UP_STEPS, max(0.0, (1 - done) / (1 - DECAY_FROM)))
        for optimizer, rate in zip(self.optimizers, self.base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        loss, right = answer_loss(self.model, batch)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return loss.item(), right

    def run(self, minutes: float) -> None:
        batches: list[Batch] = []
        saved_at = time.monotonic()
        while self.seconds < minutes * 60:
            started = time.monotonic()
            done = self.seconds / (minutes * 60)
            if not batches or self.step % POOL_BATCHES == 0:
                batches = draw_batches(self.tokenizer, self.step // POOL_BATCHES, copying_batches(done))
            loss, right = self.learn(batches[self.step % POOL_BATCHES], done)
            self.seconds += time.monotonic() - started
            if not math.isfinite(loss):
                raise ArithmeticError(f"the loss is {loss} at step {self.step}")
            if self.step % 20 == 0:
                print(f"step {self.step}, {self.seconds:.0f} s: loss {loss:.4f}, {right:.0%} right", flush=True)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self.save()
                saved_at = time.monotonic()
        self.save()


def greedy_answer(llama: Llama, prompt: str, most_tokens: int = 200) -> str:
    """What llama.cpp answers to a whole conversation, always with the most probable token, without a grammar."""
    tokens = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    answer: list[int] = []
    for token in llama.generate(tokens, temp=0.0, repeat_penalty=1.0):
        if token == llama.token_eos() or len(answer) == most_tokens:
            break
        answer.append(token)
    return llama.detokenize(answer).decode(errors="ignore")


def check(path: Path, scene_count: int) -> None:
    """Print how many held-out captions become exactly the expected JSON in llama.cpp, and the time per token."""
    llama = Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    prefix = chat_prefix(structure_prompt())
    for words in ("lexicon", "random", "none"):
        rng = random.Random(f"check/{words}")
        scenes = [random_scene(rng, held_out=True, words=words) for _ in range(scene_count // 3)]
        started = time.monotonic()
        answers = [greedy_answer(llama, prefix + chat_turn(scene.caption())) for scene in scenes]
        seconds = time.monotonic() - started
        exact = sum(answer == wanted_answer(scene) for answer, scene in zip(answers, scenes, strict=True))
        copied = sum(
            answer.endswith(f'"image_text": "{scene.word}"}}') for answer, scene in zip(answers, scenes, strict=True)
        )
        token_count = sum(len(llama.tokenize(answer.encode(), add_bos=False)) + 1 for answer in answers)
        print(
            f"words {words}: of {len(scenes)} scenes {exact} exact, {copied} with the right image_text; "
            f"{1000 * seconds / token_count:.2f} ms for a token"
        )


def main(minutes: float) -> None:
    """Train for so many minutes in all, resuming a stopped training, and write GGUF_PATH."""
    torch.set_num_threads(1)
    training = Training()
    if STATE_PATH.exists():
        training.load()
    training.run(minutes)
    write_gguf(GGUF_PATH, asdict(training.model.shape), training.model.state_dict(), training.tokenizer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35.0, help="of training, those of earlier runs included")
    parser.add_argument("--check", type=int, default=0, metavar="SCENES", help="only check the written file")
    arguments = parser.parse_args()
    if arguments.check:
        check(GGUF_PATH, arguments.check)
    else:
        main(arguments.minutes)
