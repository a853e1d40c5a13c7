"""How much faster a server answers when several requests are in flight: `engine: endpoint` against one at a time.

    .venv/bin/python benchmarks/endpoint.py --delay-ms 50 500 --in-flight 16

The server is a thread of this process. It waits so long with each answer, and answers any number at once. Pictures have
384 x 384 pixels and the detail of a photograph. Where answers come fast, encoding them is the limit.
"""

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.machine import machine  # noqa: E402
from tests.endpoint_server import MODEL, EndpointServer, Reply, completion  # noqa: E402
from vec_pipeline.engines.endpoint import PictureEndpoint  # noqa: E402

SIDE_PX = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[50.0, 500.0])
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=160)
    options = parser.parse_args()
    images = pictures(options.pictures)
    print(f"| an answer takes | one in flight | {options.in_flight} in flight | times as fast |\n|---|---|---|---|")
    for delay_ms in options.delay_ms:
        reply = Reply(completion("A red car on a road, and a sign.", logprobs=[-0.1] * 12), delay_s=delay_ms / 1e3)
        with EndpointServer(lambda _, reply=reply: reply) as server:
            one, several = (pictures_per_s(server.url, images, in_flight) for in_flight in (1, options.in_flight))
        print(
            f"| {delay_ms:.0f} ms | {one:.1f} pictures/s | {several:.1f} pictures/s | {several / one:.1f} |", flush=True
        )
    print(f"\n{machine('httpx2')}")


def pictures(number: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (number, SIDE_PX // 8, SIDE_PX // 8, 3), np.uint8)
    return [Image.fromarray(each).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC) for each in coarse]


def pictures_per_s(url: str, images: list[Image.Image], in_flight: int) -> float:
    with closing(PictureEndpoint(url, MODEL, "Describe this image.", 64)) as model:
        start_s = time.perf_counter()
        answers = model.generate(images, in_flight)
        seconds = time.perf_counter() - start_s
    assert not any(answer.error for answer in answers)
    return len(images) / seconds


if __name__ == "__main__":
    main()
