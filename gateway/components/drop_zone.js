// A place to drop or choose files. Sends each file to the portal's own upload address, one after another, and tells the
// page what arrived. Folders that are dropped are walked through; a file's path in its folder goes along as its name.
export default {
  template: `
    <label class="tw-drop" :class="{ over, busy, compact }" @dragover.prevent="over = true" @dragleave="over = false"
           @drop.prevent="dropped">
      <input type="file" :multiple="multiple" :accept="accept" :aria-label="title + ', ' + subtitle" @change="chosen"
             :disabled="busy" />
      <i class="tw-icon" style="--icon:url(/assets/icons/upload.svg)" aria-hidden="true"></i>
      <strong>{{ busy ? progressText : title }}</strong>
      <span v-if="!busy">{{ subtitle }}</span>
      <span v-if="!busy && hint" class="tw-faint">{{ hint }}</span>
      <span v-if="busy" class="tw-bar" role="progressbar" :aria-valuenow="percent" aria-valuemin="0" aria-valuemax="100"
            :aria-label="progressText"><i :style="{ width: percent + '%' }"></i></span>
    </label>`,
  props: {
    url: String,
    title: String,
    subtitle: String,
    hint: String,
    accept: String,
    multiple: Boolean,
    compact: Boolean,
    maxBytes: Number,
    maxFiles: Number,
    sendingText: String,
  },
  data: () => ({ over: false, busy: false, percent: 0 }),
  computed: {
    progressText() {
      return this.sendingText.replace("{percent}", this.percent + "%");
    },
  },
  mounted() {
    this.paste = (event) => {
      const editable = ["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName) && document.activeElement.type !== "file";
      const dialog = document.querySelector(".q-dialog");
      if (dialog && !dialog.contains(this.$el)) return;
      if (!editable && event.clipboardData?.files.length && this.$el.offsetParent) this.send([...event.clipboardData.files]);
    };
    window.addEventListener("paste", this.paste);
  },
  unmounted() {
    window.removeEventListener("paste", this.paste);
  },
  methods: {
    chosen(event) {
      const files = [...event.target.files];
      event.target.value = "";
      this.send(files);
    },
    async dropped(event) {
      this.over = false;
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      const found = [];
      for (const entry of entries) await this.walk(entry, found);
      this.send(found.length ? found : [...event.dataTransfer.files]);
    },
    async walk(entry, found) {
      if (entry.isFile) {
        const file = await new Promise((done, failed) => entry.file(done, failed));
        file.tracedName = entry.fullPath.replace(/^\//, "");
        found.push(file);
      } else {
        const reader = entry.createReader();
        for (;;) {
          const part = await new Promise((done, failed) => reader.readEntries(done, failed));
          if (!part.length) break;
          for (const child of part) await this.walk(child, found);
        }
      }
    },
    async send(files) {
      if (!files.length || this.busy) return;
      if (files.length > this.maxFiles) return this.$emit("refused", { kind: "too_many", count: files.length });
      const large = files.find((file) => file.size > this.maxBytes);
      if (large) return this.$emit("refused", { kind: "too_large", name: large.name, size: large.size });
      if (!this.multiple) files = files.slice(0, 1);
      const total = files.reduce((sum, file) => sum + file.size, 0) || 1;
      const ids = [];
      let sent = 0;
      this.busy = true;
      this.percent = 0;
      try {
        for (const file of files) {
          ids.push(await this.post(file, (loaded) => (this.percent = Math.floor((100 * (sent + loaded)) / total))));
          sent += file.size;
        }
        this.$emit("arrived", { ids });
      } catch (error) {
        this.$emit("refused", { kind: "failed", name: error.fileName, reason: error.reason || "", size: error.size });
      } finally {
        this.busy = false;
      }
    },
    post(file, progress) {
      return new Promise((done, failed) => {
        const request = new XMLHttpRequest();
        const fail = () => {
          let reason = "";
          try {
            reason = JSON.parse(request.responseText).reason;
          } catch {}
          failed({ fileName: file.name, reason, size: file.size });
        };
        request.open("POST", this.url);
        request.setRequestHeader("Content-Type", "application/octet-stream");
        request.setRequestHeader("X-File-Name", encodeURIComponent(file.tracedName || file.webkitRelativePath || file.name));
        request.upload.onprogress = (event) => progress(event.loaded);
        request.onload = () => (request.status === 201 ? done(JSON.parse(request.responseText).id) : fail());
        request.onerror = fail;
        request.send(file);
      });
    },
  },
};
