#!/bin/sh
# Install the named Debian packages that are missing, where this user may; else name them in one line.
set -eu
missing=""
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "missing programs (Debian's names):$missing" >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "missing Debian packages; install them with: sudo apt-get install$missing" >&2
    exit 1
fi
# shellcheck disable=SC2086
install() {
    $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing
}
if ! said=$(install 2>&1); then
    echo "Debian packages that couldn't be installed:$missing ($(echo "$said" | grep '^E:' | head -n 1))" >&2
    exit 1
fi
