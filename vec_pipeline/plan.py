"""How a run uses the memory there is: all models at once and the lanes side by side, or one model after the other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vec_pipeline import device
from vec_pipeline.config import Config
from vec_pipeline.record import UserError

if TYPE_CHECKING:
    from vec_pipeline.annotator import Annotator

CHUNK_IMAGES = {True: 1024, False: 64}  # with and without a GPU: more than are decoded at once, so that places refill
LARGEST_CHUNK_IMAGES = 2048
CHUNKS_AT_WORK = 4  # one in the second lane, two in or behind the first, one being read
PIXELS_SHARE = 0.1  # of the free host memory, for the pixels of chunks at work, or of one where models take turns
PIXEL_BYTES = 4  # as Pillow keeps RGB
LOADING_SHARE = 0.05  # of the time, where models take turns


@dataclass(frozen=True)
class Plan:
    """What was decided, and the sentence that says why.

    overlap: the lanes of the annotator run side by side.
    is_on_cpu: no stage uses a GPU.
    chunk_images: images of the first chunk, and of all where `is_fixed`.
    largest_chunk_images: images of any other.
    """

    overlap: bool
    chunk_images: int
    largest_chunk_images: int
    is_fixed: bool
    is_on_cpu: bool
    reason: str

    def next_chunk_images(self, annotator: "Annotator") -> int:
        """Images of the next chunk: where models take turns, so many that loading is LOADING_SHARE of the time.

        At most `largest_chunk_images`.
        """
        if self.is_fixed or not annotator.chunks:
            return self.chunk_images
        load_s = sum(annotator.cache.load_seconds.values())
        work_s = sum(annotator.seconds.values()) - load_s
        load_s_per_chunk, work_s_per_image = load_s / annotator.chunks, max(work_s, 1e-9) / annotator.images
        wanted = round(min(load_s_per_chunk / work_s_per_image / LOADING_SHARE, self.largest_chunk_images))
        return max(self.chunk_images, wanted)


def plan(config: Config, images: int | None = None) -> Plan:
    """Compare what the models need with the memory that is free now; the options `overlap` and `chunk_size` win.

    images: how many are to do, where that is known. One chunk has no other to run beside, and gets all cores.

    Raises UserError where options do not go together.
    """
    needs = [stage.need() for stage in config.stages if not stage.runs_ahead]
    models = sum(bool(need.gpu_gb or need.host_gb) for need in needs)
    gpu_gb = sum(need.gpu_gb + need.rows_gb for need in needs if need.gpu_gb)
    first, largest = chunk_sizes(config, uses_gpu=bool(gpu_gb))
    host_gb = sum(need.host_gb + need.rows_gb for need in needs if not need.gpu_gb)
    host_gb += CHUNKS_AT_WORK * first * bytes_per_image(config) / device.GB
    free_gpu_gb = device.gpu_free_gb() if gpu_gb and device.has_gpu() else None
    fits = (
        host_gb + config.clear_threshold_gb <= device.host_free_gb()
        and (not gpu_gb or gpu_gb + config.clear_threshold_gb <= (free_gpu_gb or 0.0))
        and models <= config.model_cache_size
    )
    apart = [stage.name for stage in config.stages if stage.runs_apart]
    is_one_chunk = images is not None and images <= first
    overlap = bool(apart) and (fits and not is_one_chunk if config.overlap == "auto" else config.overlap)
    if overlap and models > config.model_cache_size:  # the lanes would push out each other's models at every batch
        raise UserError(f"overlap: true works with all {models} models in memory: set model_cache_size: {models}")
    is_fixed = fits or config.chunk_size != "auto"

    figures = f"{host_gb:.1f} of {device.host_free_gb():.1f} GB host memory"
    if gpu_gb:
        figures = f"{gpu_gb:.1f} of {free_gpu_gb or 0.0:.1f} GB GPU memory, {figures}"
    if overlap:
        how = f"{apart[0]} works on a chunk of {first} images while the other stages work on the next two"
    else:
        chunks = f"one chunk of {images}" if is_one_chunk else f"chunks of {first}"
        how = f"one stage after the other, over {chunks} images"
        if not is_fixed:
            how += f" at first, then of as many as keep loading under {LOADING_SHARE:.0%}, up to {largest}"
    together = f"{'fit' if fits else 'do not fit'} together ({figures}; at most {config.model_cache_size} at once)"
    return Plan(overlap, first, largest, is_fixed, not gpu_gb, f"the models and their rows at work {together}: {how}")


def chunk_sizes(config: Config, *, uses_gpu: bool) -> tuple[int, int]:
    """Images of the first chunk, and at most of a later one: what `chunk_size` says, else as memory has room."""
    if config.chunk_size != "auto":
        return config.chunk_size, config.chunk_size
    room = int(PIXELS_SHARE * device.host_free_gb() * device.GB / bytes_per_image(config))
    first = max(1, min(CHUNK_IMAGES[uses_gpu], room // CHUNKS_AT_WORK))
    return first, max(first, min(LARGEST_CHUNK_IMAGES, room))


def bytes_per_image(config: Config) -> int:
    """Bytes of the largest image that `open_image` makes."""
    side_px = max([getattr(stage, "max_size_px", 0) for stage in config.stages] or [0]) or 1024
    return int(PIXEL_BYTES * side_px**2)
