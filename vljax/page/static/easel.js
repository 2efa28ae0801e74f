// A mask is painted over a picture, with a pointer or with keys; white is inside.
export class Easel {
  constructor(box, changed) {
    [this.box, this.changed] = [box, changed];
    [this.picture, this.canvas, this.brush] = ["img", "canvas", ".brush"].map((one) => box.querySelector(one));
    [this.size, this.eraser] = [box.querySelector(".size"), box.querySelector(".erase")];
    this.pen = this.canvas.getContext("2d");
    [this.isPainted, this.last, this.cursor, this.pending] = [false, null, null, ""];
    this.strokes = 0; // and whatever else changes the mask: whether it is still the same
    this.picture.addEventListener("load", () => this.fit());
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.last = null;
      this.stroke(this.place(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      this.point(this.place(event));
      if (event.buttons & 1) for (const one of event.getCoalescedEvents?.() || [event]) this.stroke(this.place(one));
    });
    this.canvas.addEventListener("pointerleave", () => { this.brush.hidden = true; });
    this.canvas.addEventListener("blur", () => { this.brush.hidden = true; });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.size.addEventListener("input", () => this.cursor && this.point(this.cursor));
    this.eraser.addEventListener("click", () => this.eraser.setAttribute("aria-pressed", String(!this.erases)));
    box.querySelector(".clear").addEventListener("click", () => { this.clear(); this.changed(); });
  }

  get erases() { return this.eraser.getAttribute("aria-pressed") === "true"; }
  get radius() { return (Number(this.size.value) / 200) * Math.min(this.canvas.width, this.canvas.height); }

  show(source) {
    this.box.hidden = !source;
    if (source) this.picture.src = source; else this.picture.removeAttribute("src");
  }

  fit() {
    const { naturalWidth: width, naturalHeight: height } = this.picture;
    if (width !== this.canvas.width || height !== this.canvas.height) [this.canvas.width, this.canvas.height, this.isPainted] = [width, height, false];
    // Small pictures are shown by whole pixels.
    this.picture.classList.toggle("small", width < 200);
    if (this.pending) this.load(this.pending);
  }

  clear() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    [this.isPainted, this.last, this.pending] = [false, null, ""];
    this.strokes += 1;
  }

  // A mask that was given, as if it had been painted.
  load(source) {
    this.pending = source;
    if (!this.picture.naturalWidth) return;
    const mask = new Image();
    mask.addEventListener("load", () => {
      if (this.pending !== source) return;
      const { width, height } = this.canvas;
      this.clear();
      this.pen.drawImage(mask, 0, 0, width, height);
      const pixels = this.pen.getImageData(0, 0, width, height);
      const [red, green, blue] = this.colour();
      for (let i = 0; i < pixels.data.length; i += 4) {
        const inside = pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2] > 382;
        pixels.data.set([red, green, blue, inside ? 255 : 0], i);
      }
      this.pen.putImageData(pixels, 0, 0);
      this.isPainted = true;
    });
    mask.src = source;
  }

  colour() { return [232, 96, 76]; }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  point([x, y]) {
    this.cursor = [x, y];
    const scale = this.canvas.clientWidth / this.canvas.width;
    this.brush.hidden = false;
    Object.assign(this.brush.style, { left: `${x * scale}px`, top: `${y * scale}px`, width: `${2 * this.radius * scale}px`, height: `${2 * this.radius * scale}px` });
  }

  stroke([x, y]) {
    const { pen } = this;
    pen.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
    pen.strokeStyle = `rgb(${this.colour()})`;
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2 * this.radius;
    pen.beginPath();
    pen.moveTo(...(this.last || [x, y]));
    pen.lineTo(x + 0.01, y);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
    [this.last, this.isPainted, this.pending] = [[x, y], true, ""];
    this.strokes += 1;
    this.changed();
  }

  key(event) {
    const step = (event.shiftKey ? 0.1 : 0.02) * this.canvas.width;
    const [x, y] = this.cursor || [this.canvas.width / 2, this.canvas.height / 2];
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) this.point([x + moves[event.key][0], y + moves[event.key][1]]);
    else if (event.key === " ") { this.last = null; this.point([x, y]); this.stroke([x, y]); }
    else if (event.key === "[" || event.key === "]") { this.size.value = Number(this.size.value) + (event.key === "]" ? 2 : -2); this.point([x, y]); }
    else return;
    event.preventDefault();
  }

  // A PNG: white where it is painted, black elsewhere.
  mask() {
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [this.canvas.width, this.canvas.height];
    const pen = sheet.getContext("2d");
    pen.drawImage(this.canvas, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "white";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.globalCompositeOperation = "destination-over";
    pen.fillStyle = "black";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    return new Promise((resolve) => { sheet.toBlob(resolve, "image/png"); });
  }
}
