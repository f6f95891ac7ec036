"""Our own training on ModelZoo's HDF5 rows: the tokens, labels and pictures of its batches."""

import pytest
import torch
import yaml
from cases import cases
from test_mz_models import SYSTEM

from retinue.core.errors import DataError
from retinue.data.formats import open_format
from retinue.data.hdf5 import Rows, pictures_of, real_length
from retinue.ops.collate import collate
from retinue.processor_ready import example_of
from retinue.types import IGNORE, Grid, Item

WRITTEN = [case for case in cases(SYSTEM, "h5_*") if any((case / "out").glob("*.h5"))]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_rows_as_examples(case):
    section = yaml.safe_load((case / "config.yaml").read_text("utf-8"))["dataset"]
    patches = 1 if section.get("use_single_image_token") else section["num_patches"]
    source = open_format(case / "out", media_root=case / "../images")
    rows = Rows([case / "out"])
    assert len(source) == len(rows)
    shown = []
    for index in range(len(rows)):
        row = rows[index]
        width = row.data.shape[1]
        if row.data[3, : real_length(row)].any():
            with pytest.raises(DataError, match="masked inside"):
                source[index]
            continue
        sample = source[index]
        shown += [sample] if len(sample.media) == 1 else []
        items = [
            Item(
                pixels={"rgb": torch.zeros(1, 3, 2, 2)},
                grid=Grid(size=(2, 2)),
                num_tokens=patches,
            )
            for _ in sample.media
        ]
        example = example_of(sample.id, sample.ready, items, id=-200)
        batch = collate([example], train=True)
        count = batch.tokens.shape[1]
        assert count <= width + 1
        tokens, mask = torch.tensor(row.data[0]), torch.tensor(row.data[1])
        visual = torch.zeros(count, dtype=torch.bool)
        if batch.visual is not None:
            visual[batch.visual.index] = True
        keep = ~visual[: count - 1]
        assert torch.equal(batch.tokens[0, : count - 1][keep], tokens[: count - 1][keep].long())
        labels = torch.where(mask > 0, torch.tensor(row.data[2]), IGNORE).long()
        assert torch.equal(batch.labels[0, : count - 1], labels[: count - 1])
        assert (labels[count - 1 :] == IGNORE).all()
        told = [at.tolist() for _, at in pictures_of(row)]
        assert [list(range(s.start, s.start + s.length)) for s in example.spans] == told
        assert all((case / "../images" / path).exists() for path in row.paths if path != "None")
    wrong = [Item(pixels={}, grid=Grid(size=(2, 2)), num_tokens=patches + 1)]
    for sample in shown[:1]:
        with pytest.raises(DataError, match="num_patches"):
            example_of(sample.id, sample.ready, wrong, id=-200)
