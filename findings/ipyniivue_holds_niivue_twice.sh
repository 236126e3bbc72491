#!/usr/bin/env bash
# NiiVue for Python alone: what does the wheel of ipyniivue 2.4.4 hold? Guessed: a widget whose NiiVue cannot be reached, of
# a version near its own number. Seen: of the 5.0 MB of its script 2.7 MB are one percent-encoded string, a whole second
# copy of NiiVue as a module with all its exports, of version 0.65.0; ipyniivue 2.3.0 holds none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
for version in 2.3.0 2.4.4; do venv/bin/pip download -q --no-deps -d $version ipyniivue==$version; done
venv/bin/python - <<'PYTHON'
import pathlib, re, urllib.parse, zipfile

for version, held in (("2.3.0", False), ("2.4.4", True)):
    (wheel,) = pathlib.Path(version).glob("*.whl")
    script = zipfile.ZipFile(wheel).read("ipyniivue/static/widget.js").decode()
    module = urllib.parse.unquote(max(re.findall(r'"([\w%.!~*\'()-]+)"', script, re.ASCII), key=len))
    exports = re.findall(r"export\{[^}]*\bNiivue\b[^}]*\}", module)
    told = re.findall(r'"@niivue/niivue",version:"([\d.]+)"', script)
    print(f"ipyniivue {version}: NiiVue {told}; script {len(script):,}, its longest text {len(module):,}, exports {exports}")
    assert bool(exports) == held and (told == ["0.65.0"]) == held
PYTHON
