//! One stream, on any CPU: a word is a `u32`.

use super::Block;
use super::steps::sines;

/// Takes `blocks` into `state`.
pub fn compress(state: &mut [u32; 4], blocks: &[Block]) {
    let sines = sines();
    for block in blocks {
        let (bytes, _) = block.as_chunks();
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(bytes) {
            *word = u32::from_le_bytes(*bytes);
        }
        *state = after_block!(*state, &words, sines);
    }
}

fn splat(x: u32) -> u32 {
    x
}

fn add(x: u32, y: u32) -> u32 {
    x.wrapping_add(y)
}

fn rotate(x: u32, left: u32) -> u32 {
    x.rotate_left(left)
}

fn f(sum: u32, x: u32, y: u32, z: u32) -> u32 {
    add(sum, z ^ (x & (y ^ z)))
}

/// The two terms share no bit, so they may be added one by one: the one without `x` is there early.
fn g(sum: u32, x: u32, y: u32, z: u32) -> u32 {
    add(add(sum, y & !z), x & z)
}

fn h(sum: u32, x: u32, y: u32, z: u32) -> u32 {
    add(sum, x ^ (y ^ z))
}

fn i(sum: u32, x: u32, y: u32, z: u32) -> u32 {
    add(sum, y ^ (x | !z))
}
