#!/usr/bin/env bash
# Every test of the workspace, in two lanes side by side: `make test` calls it with what cargo needs to find what was built.
#
# The first lane is what runs a Kubernetes, clients and brokers. It waits most of the time, for pods and disks, one test program after the other. The second lane,
# of all other crates, takes what the first leaves of the processors: it is in a session of its own and gives way, since a system that schedules by sessions
# counts niceness within one only. Its output comes at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

# The test programs of these files and directories, by name.
programs() {
  local file
  for file in "$@"; do
    case $file in
      */main.rs) file=${file%/main.rs} ;;
      *) file=${file%.rs} ;;
    esac
    echo "${file##*/}"
  done
}

shopt -s nullglob
mapfile -t first < <(programs {e2e,crds}/tests/*.rs {e2e,crds}/tests/*/main.rs)
mapfile -t second < <(programs {broker/*,operator}/tests/*.rs {broker/*,operator}/tests/*/main.rs)

# Here, so that the lanes do not wait for each other's compilers. Cargo finds test programs by name, and every one must be in one lane.
built=$(cargo test "$@" --no-run 2>&1 | tee /dev/stderr | sed -nE 's,^ *Executable tests/(.+)\.rs .*,\1,p' | sed 's,/main$,,' | sort)
if [ "$built" != "$(printf '%s\n' "${first[@]}" "${second[@]}" | sort -u)" ] || [ -n "$(uniq -d <<<"$built")" ]; then
  echo "error: e2e/test.sh does not know every test program, or two have one name:" $built >&2
  exit 1
fi

log=$(mktemp)
# An interrupted run leaves nothing running, and says what the second lane has come to.
finish() {
  kill -- ${first_pid:+"-$first_pid"} ${second_pid:+"-$second_pid"} 2>/dev/null || true
  cat "$log"
  rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

setsid bash -c 'echo 5 2>/dev/null >/proc/self/autogroup || true; exec nice -n 5 cargo test "$@"' lane \
  "$@" --no-fail-fast --lib --bins "${second[@]/#/--test=}" >"$log" 2>&1 &
second_pid=$!
# With job control, the first lane has a group of its own too, which a signal to this script can be handed on to at once.
set -m
cargo test "$@" --no-fail-fast "${first[@]/#/--test=}" &
first_pid=$!
set +m

failed=
wait "$first_pid" || failed+=", the programs of e2e and crds"
first_pid=
wait "$second_pid" || failed+=", the tests of the other crates"
second_pid=
cat "$log"
: >"$log"
cargo test "$@" --doc || failed+=", the examples in the documentation"
if [ -n "$failed" ]; then
  echo "error: there were failures, each named at the end of its part above: ${failed#, }" >&2
  exit 101
fi
