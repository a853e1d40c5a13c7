/* Pictures of one size, loaded and decoded ahead of their use; those used longest ago are let go. */

import { need, rowOf } from "./review-rows.js";
import { loaded } from "./server.js";

const AT_ONCE = 3;

export class Pictures {
  /** px: the longer side. most: pictures to keep. onLoad: gets the number of each row whose picture has come. */
  constructor(px, most, onLoad) {
    this.px = px;
    this.most = most;
    this.onLoad = onLoad;
    this.kept = new Map(); // row -> an img element, or null where there is no picture; the longest unused first
    this.wanted = [];
    this.loading = new Set();
  }

  /** The picture of a row: an img element, null where there is none, undefined as long as it is not here. */
  of(row) {
    const image = this.kept.get(row);
    if (image !== undefined) {
      this.kept.delete(row);
      this.kept.set(row, image);
    }
    return image;
  }

  /** Load the pictures of rows, in this order; what was wanted before and has not begun is dropped. */
  want(rows) {
    this.wanted = rows.filter((row) => row !== undefined);
    this.next();
  }

  next() {
    while (this.loading.size < AT_ONCE) {
      const row = this.wanted.find((each) => !this.kept.has(each) && !this.loading.has(each));
      if (row === undefined) return;
      this.load(row);
    }
  }

  async load(row) {
    this.loading.add(row);
    try {
      await need([row]);
      const { address } = await loaded(`${rowOf(row).picture}&px=${this.px}`);
      const image = new Image();
      image.alt = "";
      image.draggable = false;
      image.src = address;
      await image.decode().catch(() => {});
      this.kept.set(row, image);
    } catch (failure) {
      if ([404, 422].includes(failure.status)) this.kept.set(row, null);
      else this.wanted = []; // the server does not answer: it is asked again when something is wanted again
    }
    this.loading.delete(row);
    this.release();
    this.onLoad(row);
    this.next();
  }

  release() {
    for (const [row, image] of this.kept) {
      if (this.kept.size <= this.most) return;
      if (image?.isConnected || this.wanted.includes(row)) continue;
      if (image) URL.revokeObjectURL(image.src);
      this.kept.delete(row);
    }
  }
}
