"""Every writer of the library, as the campaign kills it: what it writes, and what must be true after any kill."""

import abc
from pathlib import Path
from typing import Any

import array_record.python.array_record_module  # noqa: F401
import equinox as eqx
import jax
import matplotlib.pyplot  # noqa: F401
import numpy as np
import orbax.checkpoint  # noqa: F401
from command_line import files_of
from made_up import evaluate_made_up, small_generator
from shard_files import contents, token_plan, token_records
from shard_files import write as write_shards
from test_checkpoints import POSITION, RUN, abstract, assert_is, at_step

from elt_zoo import load, save
from elt_zoo.metrics import GaussianStatistics, SampleWriter, SetStatistics, load_statistics, read_images
from elt_zoo.storage import atomic_write, read_folder, read_json, write_json
from elt_zoo.tokenizers import PatchCodebook, load_tokenizer, save_tokenizer
from elt_zoo.training import Checkpoints

OLD, NEW = 1, 2
"""The numbers of what was there before, and of what is being written."""


class Writer(abc.ABC):
    """A writer of the library."""

    def before(self, folder: Path) -> None:
        """Leaves what must not be lost."""
        self.write(folder, OLD)

    @abc.abstractmethod
    def write(self, folder: Path, number: int) -> None:
        """What is killed, and afterwards called again as it was."""

    @abc.abstractmethod
    def check(self, folder: Path, number: int | None) -> None:
        """Makes sure that everything is as written with that number; with `None`, what is there is as it was or new."""

    @staticmethod
    def numbers(number: int | None, begun: bool) -> set[int]:
        return {number} if number is not None else {OLD, NEW} if begun else {NEW}


class Training(Writer):
    """Training checkpoints: two steps for each number, of which the newest two are kept."""

    def write(self, folder: Path, number: int) -> None:
        with Checkpoints(folder / "run", RUN, keep=2) as checkpoints:
            saved = checkpoints.latest_step()
            start = 0 if saved is None else int(checkpoints.restore(abstract())[0].step)
            checkpoints.claim(step=start)  # as `fit` and runs do at their start
            for step in range(start + 1, 2 * number + 1):
                checkpoints.save(at_step(step), POSITION)

    def check(self, folder: Path, number: int | None) -> None:
        checkpoints = Checkpoints(folder / "run", RUN)
        latest = checkpoints.latest_step()
        if latest is not None:
            state, position = checkpoints.restore(abstract())
            assert_is(state, latest)
            assert position == POSITION
        if (folder / "begun").exists():
            assert latest is not None and latest >= 2 * OLD, f"the newest checkpoint is {latest}"
        if number is not None:
            names = sorted(path.name for path in (folder / "run" / "steps").iterdir())
            assert names == [str(2 * number - 1), str(2 * number)], names


class Claim(Writer):
    """The run's own `run.json`, where no checkpoint is lost if another run takes the folder."""

    def write(self, folder: Path, number: int) -> None:
        with Checkpoints(folder / "run", RUN | {"number": number}) as checkpoints:
            checkpoints.claim()

    def check(self, folder: Path, number: int | None) -> None:
        file = folder / "run" / "run.json"
        if number is not None or file.exists() or (folder / "begun").exists():
            assert read_json(file)["number"] in self.numbers(number, True)


class Model(Writer):
    """A saved generator."""

    def write(self, folder: Path, number: int) -> None:
        save(folder / "model", small_generator(number), overwrite=True)

    def check(self, folder: Path, number: int | None) -> None:
        if number is None and not (folder / "begun").exists() and not (folder / "model" / "model.safetensors").exists():
            return
        generator = load(folder / "model")
        found: Any = generator.metadata["number"]
        assert found in self.numbers(number, True), found
        assert all(
            (np.asarray(leaf) == found).all() for leaf in jax.tree.leaves(eqx.filter(generator.model, eqx.is_array))
        )
        if number is not None:
            assert sorted(files_of(folder / "model")) == ["config.json", "model.safetensors"]
            assert read_json(folder / "model" / "config.json")["metadata"]["number"] == number


class TokenizerFolder(Writer):
    """A saved tokenizer."""

    def write(self, folder: Path, number: int) -> None:
        codes: Any = np.full((16, 4), number, np.float32)
        tokenizer = PatchCodebook(codes, (8, 8, 1), 2)
        save_tokenizer(folder / "tokenizer", tokenizer, metadata={"number": number}, overwrite=True)

    def check(self, folder: Path, number: int | None) -> None:
        place = folder / "tokenizer"
        if number is None and not (folder / "begun").exists() and not (place / "model.safetensors").exists():
            return
        found = read_folder(place).description["metadata"]["number"]
        tokenizer = load_tokenizer(place)
        assert found in self.numbers(number, True) and isinstance(tokenizer, PatchCodebook)
        assert (np.asarray(tokenizer.codebook) == found).all()
        if number is not None:
            assert sorted(files_of(place)) == ["config.json", "model.safetensors"]


class Shards(Writer):
    """A folder of precomputed shards, of which the first may be there already."""

    plan = token_plan(examples=12, shard_size=5)

    def before(self, folder: Path) -> None:
        def entries(rows: range) -> Any:
            if rows.start:
                raise InterruptedError
            return token_records(self.plan)(rows)

        try:
            write_shards(folder / "shards", self.plan, entries)
        except InterruptedError:
            return

    def write(self, folder: Path, number: int) -> None:
        write_shards(folder / "shards", self.plan)

    def check(self, folder: Path, number: int | None) -> None:
        whole = folder / "whole"
        write_shards(whole, self.plan)
        expected, first = contents(whole), self.plan.file_name(0)
        if (folder / "begun").exists():
            assert (folder / "shards" / first).read_bytes() == expected[first]
        if number is not None:
            assert contents(folder / "shards") == expected


class Files(Writer):
    """Single files, written whole or not at all: text, JSON, statistics and samples."""

    def write(self, folder: Path, number: int) -> None:
        with atomic_write(folder / "scores.csv") as file:
            file.write_text(f"{number}\n" * 1000)
        write_json(folder / "summary.json", [number] * 1000)
        mean = np.full(3, number, np.float64)
        SetStatistics(GaussianStatistics(5, mean, np.diag(mean), "mine")).save(folder / "real.npz", overwrite=True)
        with SampleWriter(folder / "samples.npz", count=4, shape=(8, 8, 3), overwrite=True) as writer:
            for _ in range(2):
                writer.add(np.full((2, 8, 8, 3), number, np.uint8), np.zeros(2, np.int32))

    def check(self, folder: Path, number: int | None) -> None:
        numbers, begun = self.numbers(number, True), (folder / "begun").exists()
        readers = {
            "scores.csv": lambda file: [int(line) for line in file.read_text().splitlines()],
            "summary.json": read_json,
            "real.npz": lambda file: load_statistics(file).pool.mean.astype(int).tolist(),
            "samples.npz": lambda file: np.concatenate(list(read_images(file))).ravel().tolist(),
        }
        lengths = {"scores.csv": 1000, "summary.json": 1000, "real.npz": 3, "samples.npz": 4 * 8 * 8 * 3}
        for name, read in readers.items():
            if begun or number is not None or (folder / name).exists():
                values = read(folder / name)
                assert len(values) == lengths[name] and values[0] in numbers and len(set(values)) == 1, name
        if number is not None:
            assert set(files_of(folder)) - {"begun"} == readers.keys()


class Evaluation(Writer):
    """The folder of an evaluation with its cells, exported samples, tables and plot. What is measured is made up."""

    def write(self, folder: Path, number: int) -> None:
        evaluate_made_up(folder / "grid", ("1", "2")[:number])

    def check(self, folder: Path, number: int | None) -> None:
        place, begun = folder / "grid", (folder / "begun").exists()
        least = number if number is not None else OLD if begun else 0
        for key in ("loops1-steps2-guidance1", "loops2-steps2-guidance1")[:least]:
            assert read_json(place / "cells" / f"{key}.json")["figures"] == {"distance": 1.5}
            assert np.concatenate(list(read_images(place / "samples" / f"{key}.npz"))).shape == (2, 4, 4, 3)
        rows = {OLD, NEW} if number is None else {number}
        if least:
            assert len(read_json(place / "results.json")) in rows
            assert len((place / "results.csv").read_text().splitlines()) - 1 in rows
            table = (place / "results.md").read_text()
            assert sum(line.startswith("| ") for line in table.splitlines()) - 1 in rows, "results.md was lost"
            assert table.endswith("\n") and "Time: median" in table, "results.md is not whole"
            assert (place / "pareto.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        if number is not None:
            names = {"cells", "samples", "protocol.json", "results.json", "results.csv", "results.md", "pareto.png"}
            assert {path.name for path in place.iterdir()} == names


WRITERS: dict[str, Writer] = {
    "checkpoints": Training(),
    "run.json": Claim(),
    "models": Model(),
    "tokenizers": TokenizerFolder(),
    "shards": Shards(),
    "single files": Files(),
    "evaluations": Evaluation(),
}
