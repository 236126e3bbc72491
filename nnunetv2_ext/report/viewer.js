// The interactive view of a report: NiiVue shows one case at a time. It works without a network.
(() => {
  "use strict";
  const root = document.getElementById("viewer");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const { cases, labels } = JSON.parse(document.getElementById("viewer-data").textContent);
  const say = (text) => { part("message").textContent = text; };
  const fail = (error) => {
    console.error(error);
    say(`The interactive view failed (${error.message}). The pictures of the page show the cases.`);
  };

  // Run as an inline script, which needs no request and leaves NiiVue's classes in window.niivue.
  async function loadNiivue() {
    const base64 = document.getElementById("viewer-niivue").textContent;
    const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return window.niivue;
  }

  // Value 0 is no label; labels that the legend does not tick are invisible.
  function colourTable() {
    const ticked = [false, ...Array.from(root.querySelectorAll(".legend input"), (box) => box.checked)];
    const channel = (from) => [0, ...labels.map(({ colour }) => parseInt(colour.slice(from, from + 2), 16))];
    const names = ["", ...labels.map(({ name }) => name)];
    return {
      R: channel(1), G: channel(3), B: channel(5), A: ticked.map((seen) => (seen ? 255 : 0)),
      I: names.map((_, value) => value), labels: names,
    };
  }

  function makeView(Niivue) {
    // NiiVue's "drawing" is drawn as a line: in planes only its rim shows, one pixel wide. In 3D it is a body.
    // The image is faint there, so that the bodies inside it show.
    class View extends Niivue {
      drawScene() {  // once a frame, however many settings ask for it
        this.frame ??= requestAnimationFrame(() => {
          this.frame = undefined;
          super.drawScene();
        });
      }
      draw3D(...where) {
        this.renderShader.use(this.gl);
        this.gl.uniform1f(this.renderShader.uniforms.backOpacity, 0.2);
        const inPlanes = this.drawOpacity;
        this.drawOpacity = inPlanes ? 0.5 : 0;
        super.draw3D(...where);
        this.drawOpacity = inPlanes;
      }
    }
    const view = new View({
      loadingText: "", dragAndDropEnabled: false, viewModeHotKey: "", cycleClipPlaneHotKey: "",
      isRadiologicalConvention: true, sagittalNoseLeft: true,
      isOrientationTextVisible: false, isNearestInterpolation: true, multiplanarLayout: 2, multiplanarShowRender: 1,
      sliceType: 3, crosshairColor: [1, 1, 1, 0.8], crosshairWidth: 0.7, crosshairWidthUnit: "percent",
    });
    view.drawRimOpacity = 1;
    return view;
  }

  async function start() {
    if (!document.createElement("canvas").getContext("webgl2")) {
      part("screen").hidden = true;
      say("This browser has no WebGL 2, so there is no interactive view. The pictures of the page show the cases.");
      return;
    }
    const niivue = await loadNiivue();
    const view = makeView(niivue.Niivue);
    await view.attachToCanvas(part("canvas"));
    let maps = {};

    function settle() {
      const table = colourTable();
      view.drawLut = niivue.cmapper.makeDrawLut(table);
      view.volumes[1].setColormapLabel(table);
      const shown = (name) => maps[name] && part(name).checked;
      const area = maps.reference ? "reference" : "prediction";
      view.setDrawOpacity(maps.reference && shown("prediction") ? 0.01 : 0);
      view.setOpacity(1, shown(area) ? Number(part("opacity").value) : 0);
      view.setSliceType(Number(part("layout").value));
    }

    async function choose() {
      say("Loading ...");
      const chosen = part("case").value;
      const load = (name) => {
        const base64 = cases[chosen][name];
        return base64 && niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, cal_min: 0, cal_max: 255 });
      };
      const [image, reference, prediction] = await Promise.all(["image", "reference", "prediction"].map(load));
      if (chosen !== part("case").value) return;  // another was chosen meanwhile
      view.closeDrawing();
      while (view.volumes.length) view.removeVolumeByIndex(view.volumes.length - 1);
      view.addVolume(image);
      view.addVolume(reference ?? prediction);
      if (reference) view.loadDrawing(prediction);
      maps = { reference, prediction };
      part("reference").disabled = !reference;
      part("drawn").textContent = reference ? "line" : "area";
      view.scene.crosshairPos = view.mm2frac(cases[chosen].place);
      settle();
      view.createOnLocationChange();
      await new Promise(requestAnimationFrame);
      say(cases[chosen].note);
      root.dataset.shown = chosen;
    }

    view.onLocationChange = ({ mm }) => {
      const labelIn = (map) => labels[map.getValue(...map.mm2vox(mm)) - 1]?.name ?? "no label";
      const found = Object.entries(maps).filter(([, map]) => map).map(([name, map]) => `${name}: ${labelIn(map)}`);
      part("place").textContent = `At the crosshair: ${found.join(", ")}.`;
    };
    for (const name of ["reference", "prediction", "opacity", "layout"]) part(name).addEventListener("input", settle);
    root.querySelector(".legend").addEventListener("input", settle);
    part("case").addEventListener("input", () => choose().catch(fail));

    // The wheel belongs to the page until the view has been clicked.
    part("screen").addEventListener("wheel", (event) => {
      if (document.activeElement !== part("canvas")) event.stopPropagation();
    }, { capture: true });
    const keys = {
      Escape: () => part("canvas").blur(),
      r: () => part("reference").click(),
      p: () => part("prediction").click(),
      v: () => {
        const layout = part("layout");
        layout.selectedIndex = (layout.selectedIndex + 1) % layout.options.length;
        settle();
      },
    };
    part("canvas").addEventListener("keydown", (event) => keys[event.key]?.());
    await choose();
  }

  start().catch(fail);
})();
