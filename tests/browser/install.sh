#!/usr/bin/env bash
# Installs what the browser tests need: Chromium and a font with Korean letters. Does nothing where both are there.
set -euo pipefail

missing=()
command -v chromium >/dev/null || missing+=(chromium)
fc-list 2>/dev/null | grep -qi 'noto.*cjk' || missing+=(fontconfig fonts-noto-cjk)
[ ${#missing[@]} -eq 0 ] && exit 0

advice="The browser tests need: ${missing[*]}. On Debian: sudo apt-get install ${missing[*]}. Elsewhere: install
Chromium and Noto Sans CJK, and name the program in TEACHWAFER_CHROMIUM. Without a browser: make test TESTS='tests --ignore=tests/browser'"
if ! command -v apt-get >/dev/null; then
  echo "$advice" >&2
  [ -n "${TEACHWAFER_CHROMIUM:-}" ] && exit 0
  exit 1
fi
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
echo "Installing ${missing[*]} for the browser tests"
"${sudo[@]}" apt-get update -qq || { echo "$advice" >&2; exit 1; }
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
  || { echo "$advice" >&2; exit 1; }
