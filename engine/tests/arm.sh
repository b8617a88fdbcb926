#!/usr/bin/env bash
# The kernels, DARE and the published vectors on 64-bit Arm, by emulation. Needs Debian's packages, which it installs where it may.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=(rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
if ! { [ -x /usr/bin/rustc ] && command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null &&
    dpkg -s libstd-rust-web-dev:arm64 >/dev/null 2>&1; }; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "the Arm tests need ${packages[*]} (arm64 added by dpkg --add-architecture); install them or run this as root on Debian" >&2
        exit 1
    fi
    dpkg --add-architecture arm64
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# Debian's compiler is older than the one the workspace asks for, and knows this target without a download.
export RUSTC=/usr/bin/rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Without the library path the loader takes the C library of the arm64 packages, which need not be its own version: threads then hang.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
test=(cargo test --locked --ignore-rust-version --target aarch64-unknown-linux-gnu --target-dir target/arm -p strongroom-engine)

# Emulation is slow: every seventh length, every thirteenth alignment.
export STRONGROOM_TEST_SHORT=1
"${test[@]}" --test gcm --test crc --test vectors --test golden
"${test[@]}" --lib -- simd:: dare:: hierarchy::
STRONGROOM_CPU_DENY=pmull "${test[@]}" --test gcm
