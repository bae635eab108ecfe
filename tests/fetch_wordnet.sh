#!/bin/sh
# Build FOLDER/corpora/wordnet, as NLTK reads it, from Debian's WordNet 3.0 packages; point NLTK_DATA at FOLDER.
# Where that cannot be done it says so and succeeds: the tests that need WordNet then skip, with their reason.
#
#   sh tests/fetch_wordnet.sh FOLDER

if [ $# -ne 1 ]; then
    echo "usage: sh tests/fetch_wordnet.sh FOLDER" >&2
    exit 2
fi
target=$1/corpora/wordnet
if [ -f "$target/lexnames" ]; then
    echo "WordNet is already in $target"
    exit 0
fi

give_up() {
    echo "WordNet was not fetched: $1. Tests that need it are skipped." >&2
    exit 0
}

command -v apt-get >/dev/null && command -v dpkg >/dev/null || give_up "this needs Debian's apt-get and dpkg"
work=$(mktemp -d) || give_up "no temporary folder"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

download() { (cd "$work" && timeout 120 apt-get -qq download wordnet-base wordnet-sense-index) >"$work/log" 2>&1; }
download || { timeout 120 apt-get -qq update >/dev/null 2>&1; download; } || give_up "$(tail -n 1 "$work/log")"
for package in "$work"/*.deb; do
    dpkg -x "$package" "$work/unpacked" || give_up "cannot unpack $package"
done

# lexnames is not packaged; its manual page lists the same files: number, name, part of speech 1-4.
mkdir -p "$target" && cp "$work"/unpacked/usr/share/wordnet/* "$target" || give_up "cannot write $target"
gzip -dc "$work/unpacked/usr/share/man/man5/lexnames.5WN.gz" | awk -F '\t' '
    BEGIN { part["noun"] = 1; part["verb"] = 2; part["adj"] = 3; part["adv"] = 4 }
    /^[0-9][0-9]\t/ { gsub(/ /, "", $2); split($2, name, "."); print $1 "\t" $2 "\t" part[name[1]] }
' >"$work/lexnames"
[ "$(wc -l <"$work/lexnames")" -eq 45 ] || give_up "unexpected manual page of lexnames"
mv "$work/lexnames" "$target/lexnames" || give_up "cannot write $target"
echo "WordNet is in $target"
