#!/usr/bin/env bash
# The x86-64 kernels in Miri: an interpreter that knows the instructions this machine may lack (AVX-512, VAES, VPCLMULQDQ), and
# that sees every access outside a buffer. It takes minutes, with a few lengths and alignments only.
#
# Needs a nightly toolchain; Miri and the standard library's source are added to it where they are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    rustup component add --toolchain nightly miri rust-src
fi
# What the machine is said to have, and the peers in portable Rust: Miri knows no instruction of theirs for the key schedule.
export RUSTFLAGS='-C target-feature=+avx512f,+avx512bw,+avx512vl,+avx512dq,+vaes,+vpclmulqdq,+aes,+pclmulqdq,+ssse3,+sse4.1,+avx,+avx2
    --cfg aes_backend="soft" --cfg polyval_backend="soft"'
export RUSTFLAGS=${RUSTFLAGS//$'\n'/}
export MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR=target/miri

run() {
    cargo +nightly miri test --locked -p strongroom-engine "$@"
}
for path in vaes-avx512: vaes-avx2:avx512f aes-ni:vaes; do
    log=$(mktemp)
    STRONGROOM_CPU_DENY=${path#*:} run --test gcm -- --nocapture pieces every_ 2>&1 | tee "$log"
    grep -q "path ${path%:*}" "$log"
    rm "$log"
done
# MD5 of 16 lanes, 8 lanes and one.
run --lib -- simd::md5::tests::any_number
