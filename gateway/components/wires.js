// Lines from each class card to the training card and on to the Try card. Decoration: hidden from screen readers.
export default {
  template: `<svg class="tw-wires" aria-hidden="true"><path v-for="wire in wires" :d="wire" :class="{ live }" /></svg>`,
  props: { live: Boolean },
  data: () => ({ wires: [] }),
  mounted() {
    const canvas = this.$el.parentElement;
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(canvas);
    this.changes = new MutationObserver(() => this.draw());
    this.changes.observe(canvas, { childList: true, subtree: true });
    window.addEventListener("scroll", this.draw, { passive: true });
    this.draw();
  },
  unmounted() {
    this.observer.disconnect();
    this.changes.disconnect();
    window.removeEventListener("scroll", this.draw);
  },
  methods: {
    draw() {
      const canvas = this.$el.parentElement;
      const origin = canvas.getBoundingClientRect();
      const place = (element) => {
        const box = element.getBoundingClientRect();
        return { left: box.left - origin.left, right: box.right - origin.left, top: box.top - origin.top, height: box.height };
      };
      const train = canvas.querySelector("[data-wire=train]");
      const test = canvas.querySelector("[data-wire=try]");
      if (!train || !test) return;
      const curve = (from, to, fromY, toY) => {
        const middle = (from.right + to.left) / 2;
        return `M${from.right} ${fromY} C${middle} ${fromY} ${middle} ${toY} ${to.left} ${toY}`;
      };
      const a = place(train);
      const b = place(test);
      const wires = [...canvas.querySelectorAll("[data-wire=class]")].map((card) => {
        const box = place(card);
        return curve(box, a, box.top + Math.min(box.height / 2, 60), a.top + 28);
      });
      wires.push(curve(a, b, a.top + 28, b.top + 28));
      if (wires.join() !== this.wires.join()) this.wires = wires;
    },
  },
};
