# shellcheck shell=bash
# What the checks on a real control plane have in common: they count, go on after a failure, and say what was said.
# Sourced, with $kubectl set.
# shellcheck disable=SC2154

passed=0
failed=0

ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); printf 'FAILED: %s\n%s\n' "$1" "$2"; }

# must WHAT COMMAND…: it succeeds.
must() {
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then ok "$what"; else bad "$what" "$said"; fi
}

# must_say WHAT WORDS COMMAND…: it succeeds and says so.
must_say() {
    local what=$1 words=$2 said
    shift 2
    if ! said=$("$@" 2>&1); then
        bad "$what" "$said"
    elif grep -qF -- "$words" <<<"$said"; then
        ok "$what"
    else
        bad "$what: expected '$words'" "$said"
    fi
}

# must_fail WHAT WORDS COMMAND…: it fails, in these words.
must_fail() {
    local what=$1 words=$2 said
    shift 2
    if said=$("$@" 2>&1); then
        bad "$what: it should have been refused" "$said"
    elif grep -qF -- "$words" <<<"$said"; then
        ok "$what"
    else
        bad "$what: refused, but not with '$words'" "$said"
    fi
}

# The last line, in the words of cargo: scripts/test adds these up. The exit status says whether all was well.
summary() {
    local word=ok
    [ "$failed" = 0 ] || word=FAILED
    printf '\ntest result: %s. %d passed; %d failed; on %s\n' "$word" "$passed" "$failed" \
        "$("$kubectl" version -o json | sed -n 's/.*"gitVersion": "\(v[^"]*\)".*/Kubernetes \1/p' | tail -n 1)"
    [ "$failed" = 0 ]
}
