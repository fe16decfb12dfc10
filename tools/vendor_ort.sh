#!/usr/bin/env bash
# Rebuild bearclf/share/static/runtime: what the static page needs of other people's packages, from npm and PyPI.
#   tools/vendor_ort.sh
# Needs npm, pip, unzip and zstd. Stops if a package is not the one that was looked at.
set -euo pipefail
ort=1.30.0 fzstd=0.1.1
here=$(cd "$(dirname "$0")/.." && pwd) work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "onnxruntime-web@$ort" "fzstd@$fzstd" >/dev/null
pip download -q --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 --python-version 3.11 "onnxruntime==$ort"  # the npm package lacks the licences of what it is built from
sha256sum -c --quiet <<SUMS
d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71  onnxruntime-web-$ort.tgz
5ed2ee2d3439067be211d0093292c708a831045372342c897437e5a4997c45c5  fzstd-$fzstd.tgz
SUMS
for name in "onnxruntime-web-$ort" "fzstd-$fzstd"; do mkdir "$name"; tar xzf "$name.tgz" -C "$name" --strip-components 1; done
unzip -q onnxruntime-"$ort"-*.whl 'onnxruntime/LICENSE' 'onnxruntime/ThirdPartyNotices.txt' -d wheel
runtime=$here/bearclf/share/static/runtime
mkdir -p "$runtime"
cp "onnxruntime-web-$ort"/dist/{ort.wasm.min.mjs,ort-wasm-simd-threaded.mjs} "$runtime"
zstd -q -f --ultra -22 "onnxruntime-web-$ort/dist/ort-wasm-simd-threaded.wasm" -o "$runtime/ort-wasm-simd-threaded.wasm.zst.bin"
cp "fzstd-$fzstd/esm/index.mjs" "$runtime/fzstd.mjs"
cp wheel/onnxruntime/ThirdPartyNotices.txt "$runtime"
{ echo "ONNX Runtime Web $ort (https://onnxruntime.ai), in ort*.mjs and ort*.wasm"; echo; cat wheel/onnxruntime/LICENSE; echo; echo "fzstd $fzstd (https://github.com/101arrowz/fzstd), in fzstd.mjs"; echo; cat "fzstd-$fzstd/LICENSE"; } | tr -d '\r' > "$runtime/LICENSE.txt"
chmod 644 "$runtime"/*
ls -l "$runtime"
