//! The MD5s of the uploads of one core, side by side.
//!
//! One MD5 is bound by the latency of its chain; several run together in the lanes of vectors at a fraction of the cost each. So
//! the uploads of a core hand in their frames here, and what the streams hold is hashed together.
//!
//! - A stream by itself is hashed at once, frame by frame.
//! - Frames are held, not copied; what one stream and what all of a core hold is bounded. The bounds are wide, because uploads take
//!   turns in bursts (of what a socket holds, of what a disk has written): what one leaves goes along with the next.
//! - Who reaches a bound gives the others one turn to hand in what they have, and hashes a slice of its own and of theirs: nobody
//!   waits for lanes to fill, and a stream that ends hashes what is there.
//! - A slice is so short that the core does nothing else for well under a millisecond.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use strongroom_engine::simd::md5::{self, Job, Md5};

use crate::conn::rt::turn;
use crate::limits;

/// What the uploads of a core share. Clones are the same.
#[derive(Clone, Default)]
pub struct Lanes(Rc<RefCell<Streams>>);

#[derive(Default)]
struct Streams {
    next_id: u64,
    by_id: BTreeMap<u64, Stream>,
}

/// A digest under way, and the frames it has not taken yet.
#[derive(Default)]
struct Stream {
    md5: Md5,
    frames: VecDeque<Bytes>,
    bytes: usize,
}

/// The MD5 of one body in the making.
pub struct Hasher {
    lanes: Lanes,
    id: u64,
}

impl Lanes {
    /// Begins a body.
    pub fn begin(&self) -> Hasher {
        let mut streams = self.0.borrow_mut();
        let id = streams.next_id;
        streams.next_id += 1;
        streams.by_id.insert(id, Stream::default());
        Hasher {
            lanes: self.clone(),
            id,
        }
    }
}

impl Hasher {
    /// Takes the next frame.
    pub async fn update(&mut self, frame: &Bytes) {
        let mut full = self.lanes.0.borrow_mut().take(self.id, frame);
        while full {
            turn().await;
            full = self.lanes.0.borrow_mut().make_room(self.id);
        }
    }

    /// The digest of all that came.
    pub async fn finish(self) -> [u8; md5::DIGEST] {
        while self.lanes.0.borrow_mut().hash(self.id) {
            turn().await;
        }
        let mut streams = self.lanes.0.borrow_mut();
        streams.of(self.id).md5.clone().finish()
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.lanes.0.borrow_mut().by_id.remove(&self.id);
    }
}

impl Streams {
    fn of(&mut self, id: u64) -> &mut Stream {
        self.by_id.get_mut(&id).expect("a hasher has its stream")
    }

    /// Hashes or keeps the frame, and says whether room must be made before the next.
    fn take(&mut self, id: u64, frame: &Bytes) -> bool {
        let alone = self.by_id.len() == 1 || md5::lanes() == 1;
        let stream = self.of(id);
        if alone && stream.frames.is_empty() {
            stream.md5.update(frame);
            return false;
        }
        if !frame.is_empty() {
            stream.bytes += frame.len();
            stream.frames.push_back(frame.clone());
        }
        if alone {
            // There were others before; now what is left is worked off.
            self.hash(id);
        }
        self.is_full(id)
    }

    /// Whether this stream, or all together, hold as much as they may.
    fn is_full(&self, id: u64) -> bool {
        let stream = &self.by_id[&id];
        let all = || self.by_id.values();
        stream.bytes >= limits::MD5_STREAM_BYTES
            || stream.frames.len() >= limits::MD5_STREAM_FRAMES
            || all().map(|s| s.bytes).sum::<usize>() >= limits::MD5_CORE_BYTES
            || all().map(|s| s.frames.len()).sum::<usize>() >= limits::MD5_CORE_FRAMES
    }

    /// Hashes a slice, if nobody else did so in the meantime, and says whether that was not enough.
    fn make_room(&mut self, id: u64) -> bool {
        self.is_full(id) && self.hash(id) && self.is_full(id)
    }

    /// Hashes a slice of what this stream holds, and of the others, the fullest first, what fits beside it. Says whether the
    /// stream still holds something.
    fn hash(&mut self, id: u64) -> bool {
        let depth = self.of(id).bytes.min(limits::MD5_SLICE_BYTES);
        let mut room = depth * md5::lanes();
        let mut streams: Vec<_> = self.by_id.iter_mut().collect();
        streams.sort_by_key(|(other, stream)| (**other != id, Reverse(stream.bytes)));
        let mut work = Vec::new();
        for (_, stream) in streams {
            let frames = stream.give(depth.min(room));
            if frames.is_empty() {
                break;
            }
            room -= frames.iter().map(Bytes::len).sum::<usize>();
            work.push((&mut stream.md5, frames));
        }
        let mut jobs: Vec<_> = work
            .iter_mut()
            .map(|(md5, frames)| Job {
                md5,
                pieces: frames.iter().map(|frame| &frame[..]),
            })
            .collect();
        md5::update_all(&mut jobs);
        self.of(id).bytes > 0
    }
}

impl Stream {
    /// Takes off the first `max` bytes, or all there are.
    fn give(&mut self, max: usize) -> Vec<Bytes> {
        let mut left = max.min(self.bytes);
        self.bytes -= left;
        let mut given = Vec::new();
        while left > 0 {
            let frame = self.frames.front_mut().expect("as many bytes as counted");
            let piece = if frame.len() > left {
                frame.split_to(left)
            } else {
                self.frames.pop_front().unwrap_or_default()
            };
            left -= piece.len();
            given.push(piece);
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use ::md5::{Digest as _, Md5 as Reference};
    use futures_util::future::join;
    use glommio::LocalExecutor;
    use proptest::prelude::*;

    use super::*;

    fn data(len: usize, seed: usize) -> Bytes {
        (0..len)
            .map(|i| {
                ((i + seed * 7919) as u32)
                    .wrapping_mul(0x9e37_79b1)
                    .to_be_bytes()[0]
            })
            .collect()
    }

    fn reference(data: &[u8]) -> [u8; 16] {
        Reference::digest(data).into()
    }

    fn held(lanes: &Lanes) -> usize {
        lanes.0.borrow().by_id.values().map(|s| s.bytes).sum()
    }

    /// Hands in without a turn for the others.
    fn hand_in(hasher: &mut Hasher, frame: &Bytes) {
        let mut streams = hasher.lanes.0.borrow_mut();
        let mut full = streams.take(hasher.id, frame);
        while full {
            full = streams.make_room(hasher.id);
        }
    }

    fn done(hasher: Hasher) -> [u8; 16] {
        let mut streams = hasher.lanes.0.borrow_mut();
        while streams.hash(hasher.id) {}
        streams.of(hasher.id).md5.clone().finish()
    }

    #[test]
    fn a_stream_by_itself_holds_nothing() {
        let lanes = Lanes::default();
        let mut only = lanes.begin();
        hand_in(&mut only, &data(1000, 0));
        assert_eq!(held(&lanes), 0);
        let other = lanes.begin();
        hand_in(&mut only, &data(1000, 1));
        assert_eq!(held(&lanes), if md5::lanes() > 1 { 1000 } else { 0 });
        drop(other);
        hand_in(&mut only, &data(1000, 2));
        assert_eq!(held(&lanes), 0);
        let whole = [data(1000, 0), data(1000, 1), data(1000, 2)].concat();
        assert_eq!(done(only), reference(&whole));
        assert!(lanes.0.borrow().by_id.is_empty());
    }

    #[test]
    fn a_full_stream_lets_others_hand_in_and_hashes_for_all() {
        LocalExecutor::default().run(async {
            let lanes = Lanes::default();
            let (mut full, mut other) = (lanes.begin(), lanes.begin());
            let (large, small) = (data(limits::MD5_STREAM_BYTES, 0), data(1000, 1));
            join(full.update(&large), other.update(&small)).await;
            // Neither has hashed by itself: the small one is gone, and a slice of the large one.
            let left = match md5::lanes() {
                1 => 0,
                _ => large.len() - limits::MD5_SLICE_BYTES,
            };
            assert_eq!(held(&lanes), left);
            assert_eq!(full.finish().await, reference(&large));
            assert_eq!(other.finish().await, reference(&small));
        });
    }

    #[test]
    fn what_is_held_is_bounded_per_stream_and_core() {
        let lanes = Lanes::default();
        let mut all: Vec<_> = (0..200).map(|_| lanes.begin()).collect();
        let large = data(limits::MD5_STREAM_BYTES - 1, 0);
        for hasher in &mut all {
            hand_in(hasher, &large);
            assert!(held(&lanes) < limits::MD5_CORE_BYTES + large.len());
        }
        for hasher in &mut all {
            for _ in 0..3 * limits::MD5_STREAM_FRAMES {
                hand_in(hasher, &data(1, 7));
                let streams = lanes.0.borrow();
                let frames = |s: &Stream| s.frames.len();
                assert!(
                    streams.by_id.values().map(frames).max() <= Some(limits::MD5_STREAM_FRAMES)
                );
                let sum: usize = streams.by_id.values().map(frames).sum();
                assert!(sum <= limits::MD5_CORE_FRAMES, "{sum} frames");
            }
        }
        let expected =
            reference(&[&large[..], &[data(1, 7)[0]; 3 * limits::MD5_STREAM_FRAMES]].concat());
        for hasher in all {
            assert_eq!(done(hasher), expected);
        }
    }

    #[test]
    fn a_dropped_stream_leaves_the_others_alone() {
        let lanes = Lanes::default();
        let (mut kept, mut dropped) = (lanes.begin(), lanes.begin());
        hand_in(&mut dropped, &data(100, 1));
        hand_in(&mut kept, &data(100, 2));
        drop(dropped);
        assert_eq!(done(kept), reference(&data(100, 2)));
    }

    proptest! {
        #[test]
        fn any_order_of_frames_and_ends(steps in prop::collection::vec((0usize..20, 0usize..100_000), 0..120)) {
            let lanes = Lanes::default();
            let mut open: BTreeMap<usize, (Hasher, Vec<u8>)> = BTreeMap::new();
            for (n, (stream, len)) in steps.into_iter().enumerate() {
                // Now and then a stream ends.
                if len % 7 == 0 && let Some((hasher, whole)) = open.remove(&stream) {
                    prop_assert_eq!(done(hasher), reference(&whole));
                } else {
                    let (hasher, whole) = open.entry(stream).or_insert_with(|| (lanes.begin(), Vec::new()));
                    let frame = data(len, n);
                    hand_in(hasher, &frame);
                    whole.extend_from_slice(&frame);
                }
            }
            for (hasher, whole) in open.into_values() {
                prop_assert_eq!(done(hasher), reference(&whole));
            }
            prop_assert!(lanes.0.borrow().by_id.is_empty());
        }
    }
}
