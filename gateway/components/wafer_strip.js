// Wafers of one sprite sheet as small pictures: hovering enlarges, a click opens, the cross removes.
export default {
  template: `
    <div class="tw-strip" :class="{ 'one-line': oneLine }" role="list" :aria-label="label">
      <span v-for="(item, index) in items" :key="item.id" class="tw-thumb-cell" role="listitem">
        <button type="button" class="tw-thumb" :class="marked.includes(item.id) ? (crossing ? 'crossed' : 'marked') : ''" :style="tile(index, 56)"
                :aria-label="item.label" :aria-pressed="marking ? marked.includes(item.id) : null"
                @click="$emit('pick', { id: item.id })" @mouseenter="show(index, $event)" @mouseleave="hovered = null"
                @focus="show(index, $event)" @blur="hovered = null"></button>
        <span v-if="item.badge" class="tw-thumb-badge" aria-hidden="true">{{ item.badge }}</span>
        <button v-if="deleteLabel" type="button" class="tw-thumb-delete" :aria-label="deleteLabel + ': ' + item.label"
                :title="deleteLabel" @click="hovered = null; $emit('remove', { id: item.id })">
          <i class="tw-icon small" style="--icon:url(/assets/icons/close.svg)" aria-hidden="true"></i>
        </button>
      </span>
      <Teleport to="body">
        <div v-if="hovered !== null && items[hovered]" class="tw-hover" :style="place" aria-hidden="true"><div :style="tile(hovered, 190)"></div><p v-if="items[hovered].note">{{ items[hovered].note }}</p></div>
      </Teleport>
    </div>`,
  props: {
    items: Array,
    sheet: String,
    columns: Number,
    rows: Number,
    label: String,
    deleteLabel: String,
    oneLine: Boolean,
    marking: Boolean,
    crossing: Boolean,
    marked: { type: Array, default: () => [] },
  },
  data: () => ({ hovered: null, place: {} }),
  methods: {
    tile(index, size) {
      const column = index % this.columns;
      const row = Math.floor(index / this.columns);
      return {
        backgroundImage: `url("${this.sheet}")`,
        backgroundSize: `${this.columns * size}px ${this.rows * size}px`,
        backgroundPosition: `${-column * size}px ${-row * size}px`,
      };
    },
    show(index, event) {
      // While wafers are chosen, an enlarged one would hide what is done with them.
      if (this.marking && !this.crossing) return;
      const place = event.target.getBoundingClientRect();
      const above = place.top > 260;
      this.hovered = index;
      this.place = {
        left: `${Math.min(Math.max(8, place.left - 75), window.innerWidth - 216)}px`,
        top: above ? `${place.top - (this.items[index].note ? 244 : 216)}px` : `${place.bottom + 8}px`,
      };
    },
  },
};
