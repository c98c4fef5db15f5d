// A round wafer to paint failed dies on, by pointer or by keyboard.
const NO_DIE = 0;
const PASS = 1;
const FAIL = 2;

export default {
  template: `<canvas class="tw-pad" width="840" height="840" tabindex="0" role="application" :aria-label="label"
    @pointerdown.prevent="start" @pointermove="move" @pointerup="stop" @pointercancel="stop" @contextmenu.prevent
    @keydown="key" @focus="focused = true; paint()" @blur="focused = false; paint()"></canvas>`,
  props: { label: String, across: Number, brush: Number, erase: Boolean },
  data: () => ({ dies: null, focused: false, cursor: null, drawing: null }),
  mounted() {
    this.clear();
  },
  watch: {
    across() {
      this.clear();
    },
  },
  methods: {
    clear() {
      const n = this.across;
      this.dies = new Uint8Array(n * n).map((_, i) => {
        const x = (2 * ((i % n) + 0.5)) / n - 1;
        const y = (2 * (Math.floor(i / n) + 0.5)) / n - 1;
        return x * x + y * y <= 1 ? PASS : NO_DIE;
      });
      this.cursor = { x: Math.floor(n / 2), y: Math.floor(n / 2) };
      this.paint();
    },
    read() {
      return { across: this.across, dies: Array.from(this.dies).join("") };
    },
    scatter() {
      for (let i = 0; i < this.dies.length; i++) if (this.dies[i] === PASS && Math.random() < 0.02) this.dies[i] = FAIL;
      this.paint();
    },
    start(event) {
      this.$el.setPointerCapture(event.pointerId);
      this.$el.focus();
      this.drawing = event.button === 2 || this.erase ? PASS : FAIL;
      this.move(event);
    },
    move(event) {
      if (this.drawing === null) return;
      const place = this.$el.getBoundingClientRect();
      for (const each of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
        this.dab(
          ((each.clientX - place.left) / place.width) * this.across,
          ((each.clientY - place.top) / place.height) * this.across,
          this.drawing,
        );
      }
      this.paint();
    },
    stop() {
      this.drawing = null;
    },
    key(event) {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) {
        this.cursor.x = Math.min(this.across - 1, Math.max(0, this.cursor.x + step[0]));
        this.cursor.y = Math.min(this.across - 1, Math.max(0, this.cursor.y + step[1]));
      } else if (event.key === " ") {
        this.dab(this.cursor.x + 0.5, this.cursor.y + 0.5, this.erase ? PASS : FAIL);
      } else return;
      event.preventDefault();
      this.paint();
    },
    dab(x, y, value) {
      const radius = this.brush / 2;
      for (let row = Math.floor(y - radius); row <= y + radius; row++) {
        for (let column = Math.floor(x - radius); column <= x + radius; column++) {
          if (row < 0 || column < 0 || row >= this.across || column >= this.across) continue;
          const inside = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= Math.max(radius, 0.72);
          const index = row * this.across + column;
          if (inside && this.dies[index] !== NO_DIE) this.dies[index] = value;
        }
      }
    },
    paint() {
      const context = this.$el.getContext("2d");
      const step = this.$el.width / this.across;
      context.clearRect(0, 0, this.$el.width, this.$el.height);
      this.dies.forEach((die, i) => {
        if (die === NO_DIE) return;
        context.fillStyle = die === FAIL ? "#96140a" : "#86c18c";
        context.fillRect((i % this.across) * step + 0.5, Math.floor(i / this.across) * step + 0.5, step - 1, step - 1);
      });
      if (this.focused) {
        context.strokeStyle = "#2251cc";
        context.lineWidth = 3;
        context.strokeRect(this.cursor.x * step, this.cursor.y * step, step, step);
      }
    },
  },
};
