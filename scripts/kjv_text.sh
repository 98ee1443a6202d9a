#!/usr/bin/env bash
# A text to train on: the King James Bible from Debian's packages bible-kjv and bible-kjv-text, 4.1 MB of
# plain ASCII in the public domain. A file a book, a line a verse, an empty line between chapters.
#   scripts/kjv_text.sh FOLDER
set -euo pipefail
folder=${1:?usage: scripts/kjv_text.sh FOLDER}
command -v bible >/dev/null || "$(dirname "$0")/install_packages.sh" bible-kjv bible-kjv-text
mkdir -p "$folder"
bible -f gen1:1-rev22:21 | awk -v folder="$folder" '
  {
    split($1, place, ":")  # such as 1Sm3:12
    chapter = place[1]
    book = chapter
    sub(/[0-9]+$/, "", book)
    if (book != last_book) {
      if (file != "") close(file)
      file = sprintf("%s/%02d_%s.txt", folder, ++books, book)
    } else if (chapter != last_chapter) {
      print "" > file
    }
    last_book = book
    last_chapter = chapter
    sub(/^[^ ]+ /, "")
    print > file
  }
  END { exit books == 66 ? 0 : 1 }'
