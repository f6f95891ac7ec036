"""OpenFlamingo's checkpoint.pt."""

from __future__ import annotations

from retinue.hub.flamingo_export import flamingo_state, write_state
from retinue.hub.load import load_with_report
from retinue.hub.targets.base import Asked, ConvertReport, Target
from retinue.model.adapters import merge_adapters


class ToFlamingo(Target):
    """OpenFlamingo's checkpoint.pt: resampler, gated blocks and embeddings."""

    name = "flamingo"

    def convert(self, asked: Asked) -> ConvertReport:
        """The trained part only: adapters are folded in, language model and tower stay behind."""
        loaded = load_with_report(
            asked.src, base=asked.base, encoders=asked.encoders, dtype=asked.dtype
        )
        merge_adapters(loaded.model)
        state = flamingo_state(loaded.model)
        write_state(state, asked.dst)
        note = "language model and tower are not part of the file; users load it onto their own"
        return ConvertReport(
            source=loaded.opened.format,
            target=self.name,
            folder=asked.dst,
            coverage=loaded.coverage,
            written=list(state),
            notes=[note],
        )
