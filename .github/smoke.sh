#!/usr/bin/env bash
# Installs a wheel into an empty environment, away from the source tree, and checks the starter on the embedded model.
#   bash .github/smoke.sh WHEEL
set -euo pipefail
wheel=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "$wheel"
venv/bin/harness list
venv/bin/harness init variant.yaml
code=0
venv/bin/harness check variant.yaml || code=$?
# Any verdict shows that the installation works: passed, failed or undecided. Code 2 says that nothing was judged.
case $code in 0 | 1 | 3) ;; *) echo "harness check ended with $code" >&2; exit 1 ;; esac
test -s runs/*/run.json
test -s runs/*/report.html
