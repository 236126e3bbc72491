#!/usr/bin/env bash
# A table of label colours for the labels 1 and 2. Guessed: NiiVue draws both. Seen: NiiVue 0.65.0, which is also the one
# inside ipyniivue 2.4.4, makes the first entry of the table transparent whatever its label is, so that label 1 is never
# drawn; 0.69.0 makes transparent only the entry of label 0. A table that begins with label 0 is drawn alike by both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund old@npm:@niivue/niivue@0.65.0 new@npm:@niivue/niivue@0.69.0
python3 -m venv venv
venv/bin/pip install -q --no-deps ipyniivue==2.4.4
venv/bin/python - <<'PYTHON'
import pathlib, re, urllib.parse

widget = next(pathlib.Path("venv").glob("lib/*/site-packages/ipyniivue/static/widget.js")).read_text()
pathlib.Path("inside.mjs").write_text(urllib.parse.unquote(max(re.findall(r'"([\w%.!~*\'()-]+)"', widget, re.ASCII), key=len)))
PYTHON
for name in old new; do cp "node_modules/$name/dist/index.js" "$name.mjs"; done
cat > look.mjs <<'NODE'
for (const [name, alphas] of [["old", "0,255"], ["inside", "0,255"], ["new", "255,255"]]) {
  const { cmapper } = await import(`./${name}.mjs`);
  const { lut } = cmapper.makeLabelLut({ R: [255, 0], G: [0, 255], B: [0, 0], I: [1, 2] });
  console.log(`${name}: opacity of the labels 1 and 2: ${lut[3]} and ${lut[7]}`);
  if (`${lut[3]},${lut[7]}` !== alphas) process.exitCode = 1;
}
NODE
node look.mjs
