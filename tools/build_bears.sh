#!/usr/bin/env bash
# Rebuild the bundled bear model from a folder of photos, with the product's own commands.
#   tools/build_bears.sh PHOTOS [FOLDER_OF_OTHER_THINGS ...]
# PHOTOS has one folder per label (black, grizzly, teddy). The other folders are measured, never learned from.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 PHOTOS [FOLDER_OF_OTHER_THINGS ...]" >&2; exit 2; }
photos=$1; shift
here=$(cd "$(dirname "$0")/.." && pwd)
run=$(mktemp -d)/run
strangers=(); for folder in "$@"; do strangers+=(--ood "$folder"); done
bearclf train "$photos" --out "$run"
bearclf export "$run" --out "$here/bearclf/models/bears" --force --notes "$here/tools/bears_notes.md" "${strangers[@]}"
cat "$here/bearclf/models/bears/card.md"
