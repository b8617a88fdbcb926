//! The steps of MD5, once for all kernels: what a word is, and how words are added, mixed and rotated, is the kernel's.

/// `floor(2^32 * |sin(n + 1)|)`.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
];

/// The table, opaque to the compiler: constants that it knows it adds last in each sum, which makes every step a cycle longer.
#[inline]
pub fn sines() -> &'static [u32; 64] {
    std::hint::black_box(&SINES)
}

/// The state after one block: `$state` is four words, `$block` sixteen, `$sines` what [`sines`] gives.
///
/// In scope where this stands: `splat` of a `u32`, `add`, `rotate` to the left, and the mixes `f`, `g`, `h`, `i`, which take a sum
/// and add their function of the three words to it, the word made last first.
macro_rules! after_block {
    ($state:expr, $block:expr, $sines:expr) => {{
        let before = $state;
        let [mut a, mut b, mut c, mut d] = before;
        let (block, sines) = ($block, $sines);
        macro_rules! step {
            ($mix:ident, $a:ident, $b:ident, $c:ident, $d:ident, $step:expr, $word:expr, $left:literal) => {
                let sum = add(add($a, splat(sines[$step])), block[$word % 16]);
                $a = add(rotate($mix(sum, $b, $c, $d), $left), $b);
            };
        }
        // Sixteen steps in a row: how far one goes on in the block, and how far each of four in turn rotates. They are laid out
        // one by one, because a loop would cost as much again.
        macro_rules! round {
            ($mix:ident, $step:literal, $word:literal + $stride:literal, $rotations:tt) => {
                round!($mix, $step, $word, $stride, $rotations);
                round!($mix, $step + 4, $word + 4 * $stride, $stride, $rotations);
                round!($mix, $step + 8, $word + 8 * $stride, $stride, $rotations);
                round!($mix, $step + 12, $word + 12 * $stride, $stride, $rotations);
            };
            ($mix:ident, $step:expr, $word:expr, $stride:literal, [$r0:literal, $r1:literal, $r2:literal, $r3:literal]) => {
                step!($mix, a, b, c, d, $step, $word, $r0);
                step!($mix, d, a, b, c, $step + 1, $word + $stride, $r1);
                step!($mix, c, d, a, b, $step + 2, $word + 2 * $stride, $r2);
                step!($mix, b, c, d, a, $step + 3, $word + 3 * $stride, $r3);
            };
        }
        round!(f, 0, 0 + 1, [7, 12, 17, 22]);
        round!(g, 16, 1 + 5, [5, 9, 14, 20]);
        round!(h, 32, 5 + 3, [4, 11, 16, 23]);
        round!(i, 48, 0 + 7, [6, 10, 15, 21]);
        [
            add(before[0], a),
            add(before[1], b),
            add(before[2], c),
            add(before[3], d),
        ]
    }};
}
