# shellcheck shell=sh
# The one build of all tools and tests that scripts/test and tests/mutants/run share: with checks that can be taken out,
# of which none is, and without what debuggers read. Sourced in the checkout.
target=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)
target=${target%/mutants}/mutants
mkdir -p "$target"
export NC_BACKUP_MUTANT_FILE="$target/active" CARGO_TARGET_DIR="$target" CARGO_PROFILE_DEV_DEBUG=0
: >"$NC_BACKUP_MUTANT_FILE"
