#!/usr/bin/env bash
# The kernels on 512 bits, in Miri: an interpreter that has the instructions this machine may lack (AVX-512, VAES, VPCLMULQDQ), and
# that sees every access outside a buffer. It takes minutes, with a few lengths and alignments only.
#
# Needs a nightly toolchain; Miri and the standard library's source are added to it where they are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    rustup component add --toolchain nightly miri rust-src
fi
# What the machine is said to have, and the peers in portable Rust: Miri lacks an instruction of theirs for the key schedule.
features=+aes,+pclmulqdq,+ssse3,+sse4.1,+avx,+avx2,+vaes,+vpclmulqdq,+avx512f,+avx512bw,+avx512vl,+avx512dq
export RUSTFLAGS="-C target-feature=$features --cfg aes_backend=\"soft\" --cfg polyval_backend=\"soft\""
export MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR=target/miri

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo +nightly miri test --locked -p strongroom-engine --test gcm -- --nocapture pieces every_ 2>&1 | tee "$log"
grep -q 'path vaes-avx512' "$log"
# MD5 of 16 lanes, 8 lanes and one.
cargo +nightly miri test --locked -p strongroom-engine --lib -- simd::md5::tests::any_number
