"""How many images go through one stage before the next: enough to keep it busy, and so that models rarely reload."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vec_pipeline import device
from vec_pipeline.record import Stage

if TYPE_CHECKING:
    from vec_pipeline.children import Children
    from vec_pipeline.executor import Executor

FIRST_IMAGES = {True: 1024, False: 64}  # with and without a GPU: several times what is decoded at once, so slots refill
LARGEST_IMAGES = 2048
CHUNKS_AT_WORK = 4  # one in the child process, two in this one or behind it, one being read
PIXELS_SHARE = 0.1  # of the free host memory, for the pixels of the chunks at work
PIXEL_BYTES = 4  # as Pillow keeps RGB
LOADING_SHARE = 0.05  # of the time, where models have to be loaded again for each chunk


@dataclass(frozen=True)
class ChunkSize:
    """Images of the first chunk, and at most of a later one; the bytes that an image takes in memory."""

    first: int
    largest: int
    image_bytes: int

    @property
    def images_gb(self) -> float:
        """Host memory of the images at work."""
        return CHUNKS_AT_WORK * self.first * self.image_bytes / device.GB

    def next(self, executor: "Executor | Children") -> int:
        """Images of the next chunk: where not all models stay loaded, so many that loading is LOADING_SHARE of it."""
        if executor.models.holds_all or not executor.chunks:
            return self.first
        load_s = sum(executor.models.load_seconds.values())
        work_s = sum(executor.seconds.values()) - load_s
        load_s_per_chunk, work_s_per_image = load_s / executor.chunks, max(work_s, 1e-9) / executor.images
        wanted = round(min(load_s_per_chunk / work_s_per_image / LOADING_SHARE, self.largest))
        return max(self.first, wanted)


def chunk_size(stages: Iterable[Stage], wanted: int | Literal["auto"]) -> ChunkSize:
    """What `chunk_size` says, else as many images as memory has space for.

    The largest image is taken to be `max_size_px` squared, of the stage that has such an option.
    """
    stages = list(stages)
    side_px = max((getattr(stage, "max_size_px", 0) for stage in stages), default=0) or 1024
    image_bytes = PIXEL_BYTES * side_px**2
    if wanted != "auto":
        return ChunkSize(wanted, wanted, image_bytes)
    most = int(PIXELS_SHARE * device.host_free_gb() * device.GB / image_bytes)
    uses_gpu = any(stage.need().gpu_gb for stage in stages)
    first = max(1, min(FIRST_IMAGES[uses_gpu], most // CHUNKS_AT_WORK))
    return ChunkSize(first, max(first, min(LARGEST_IMAGES, most)), image_bytes)
