#!/usr/bin/env bash
# Fetches DynamoDB Local into a folder, once: `fetch.sh .tools/dynamodb-local-2.6.1`.
# Every file must have the checksum in SHA256SUMS, and there may be no other. Where
# Java or Maven is missing it says so and succeeds: the tests that need it are skipped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
destination=$1

test -e "$destination" && exit 0
for program in javac mvn; do
  if ! command -v "$program" > /dev/null; then
    echo "no DynamoDB Local, its tests will be skipped: no $program; install a JDK 17 and Maven for them"
    exit 0
  fi
done

mkdir -p "$(dirname "$destination")"
tools=$(cd "$(dirname "$destination")" && pwd) # Maven takes relative paths from its own project
draft=$(mktemp -d "$tools/.dynamodb-local-XXXXXX")
trap 'rm -rf "$draft"' EXIT
mvn --batch-mode --quiet --strict-checksums --file "$here/pom.xml" \
  org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
  -DincludeScope=runtime -DoutputDirectory="$draft"
(cd "$draft" && sha256sum --strict --quiet --check "$here/SHA256SUMS")
if [ "$(find "$draft" -type f | wc -l)" != "$(wc -l < "$here/SHA256SUMS")" ]; then
  echo "DynamoDB Local: Maven brought files that SHA256SUMS does not list" >&2
  exit 1
fi
chmod 755 "$draft"
mv -T "$draft" "$destination" # whoever comes second at the same time fails here
