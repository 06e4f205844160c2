// One filling: its tokens, the slider that goes back through the passes, and its figures.
export class Panel {
  constructor(element, template) {
    this.element = element;
    element.append(template.content.cloneNode(true));
    this.out = element.querySelector(".out");
    this.slider = element.querySelector(".slider");
    this.place = element.querySelector(".shown");
    this.figures = element.querySelector(".figures");
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.text = "";
  }

  hide(hidden) { this.element.hidden = hidden; }

  clear() {
    this.hide(false);
    this.cells = [];
    this.passes = [];
    this.slider.max = "0";
    this.text = "";
    this.started = performance.now();
    this.out.replaceChildren();
    this.figures.replaceChildren();
  }

  take(event) {
    if (event.object === "infill.start") this.begin(event);
    if (event.object === "infill.pass") this.pass(event);
    if (event.object === "infill.end") {
      this.text = event.text;
      // null: this network's objective has no likelihood.
      const nats = event.nats_per_token?.toFixed(2) ?? "n/a";
      this.report(event.seconds, { "nats per token": nats, seed: event.seed });
    }
  }

  begin(event) {
    this.cells = Array.from({ length: event.length }, () => ({ pass: Infinity }));
    for (const token of event.tokens) this.cells[token.position] = { ...token, pass: 0 };
    for (const cell of this.cells) {
      cell.span = document.createElement("span");
      this.out.append(cell.span);
    }
    this.show(0);
  }

  pass(event) {
    this.passes.push(event);
    for (const token of event.tokens)
      Object.assign(this.cells[token.position], token, { pass: event.pass, phase: event.phase });
    this.slider.max = String(event.pass);
    this.slider.value = String(event.pass);
    this.show(event.pass);
    this.report((performance.now() - this.started) / 1000);
  }

  // One pass on, only what that pass wrote changes; a text of thousands of tokens would stall else.
  show(number) {
    const isNext = number === this.shown + 1;
    const changed = isNext ? this.passes.slice(Math.max(number - 2, 0), number)
      .flatMap((pass) => pass.tokens.map((token) => this.cells[token.position])) : this.cells;
    for (const cell of changed) this.draw(cell, number);
    this.shown = number;
    this.place.textContent = `${number} of ${this.passes.length}`;
    this.slider.setAttribute("aria-valuetext", `pass ${number} of ${this.passes.length}`);
  }

  // Text of the model goes in as text, whatever it looks like.
  draw(cell, number) {
    const written = cell.pass <= number;
    const kind = cell.pass === 0 ? "given" : cell.phase;
    cell.span.className = written ? kind + (cell.pass === number && number ? " new" : "") : "blank";
    cell.span.textContent = written ? cell.text : "\u00b7";
  }

  // atEnd: figures of the finished text.
  report(seconds, atEnd = {}) {
    const count = (phase) => this.passes.filter((each) => each.phase === phase)
      .reduce((sum, each) => sum + each.tokens.length, 0);
    const written = count("diffusion") + count("sequential");
    const rows = { passes: this.passes.length, diffusion: count("diffusion"),
      "left to right": count("sequential"), "tokens/s": (written / seconds).toFixed(0),
      seconds: seconds.toFixed(2), ...atEnd };
    this.figures.replaceChildren(...Object.entries(rows).map(([name, value]) => {
      const [row, term, shown] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = name;
      shown.textContent = String(value);
      row.append(term, shown);
      return row;
    }));
  }
}
