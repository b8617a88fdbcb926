//! Counter mode and GHASH in one loop, whatever the width.
//!
//! A *batch* is eight vectors: as many AES states as hide the latency of a round. While their rounds run, the multiplier takes the
//! ciphertext of a batch, a step for every two or three vectors of a round: that of the batch before when sealing, of the
//! same one when opening. Products are summed by Karatsuba's method in three registers and reduced once a *group* of batches.
//! What does not fit sixteen registers is read from memory: keys, hash-key powers, counters, the byte order.
//!
//! Counters cost one addition a vector. A batch begins where the count is 2 above a multiple of its blocks (as that of a whole
//! message does), so its counters are `base ^ constant`, with the first round key already in `base`, and only the last two
//! blocks are beyond the carry. What lies before or behind the batches goes through [`Run::few`].

/// Holds the order of the code: what stands before is computed before. Left to itself, the compiler takes the two halves of the
/// loop apart again, and regroups the sums.
macro_rules! pin {
    (@place $value:expr) => {
        "{} "
    };
    ($register:ident: $(($value:expr))*) => {
        // Miri knows no assembly, and has no order of its own to hold.
        if cfg!(not(miri)) {
            // SAFETY: no instruction: all values come out as they went in.
            unsafe {
                core::arch::asm!(
                    concat!("/* ", $(pin!(@place $value),)* " */"),
                    $(inout($register) $value,)*
                    options(nomem, nostack, preserves_flags),
                )
            }
        }
    };
}

/// Makes the kernel of one width from what its file calls `Vector`, `Token`, `load`, `xor` and so on.
macro_rules! stitched {
    ($features:literal, $lanes:literal, $register:ident) => {
        use aes::cipher::inout::InOutBuf;
        use core::arch::asm;
        use core::arch::x86_64::{
            _mm_clmulepi64_si128, _mm_cvtsi32_si128, _mm_insert_epi32, _mm_loadu_si128,
            _mm_setzero_si128, _mm_storeu_si128, _mm_sub_epi32, _mm_unpackhi_epi64,
            _mm_unpacklo_epi64,
        };

        use super::setup::{self, ROUNDS, from_bytes, reverse, to_bytes};
        use crate::simd::gcm::{BLOCK, Direction};

        /// Blocks of a vector and of a batch, and the bytes of both.
        const LANES: usize = $lanes;
        const BATCH: usize = 8 * LANES;
        const VECTOR_BYTES: usize = LANES * BLOCK;
        const BATCH_BYTES: usize = BATCH * BLOCK;
        /// Batches of a group, and the hash-key powers it takes: never more than 32, for they are computed for each key.
        const GROUP: usize = if LANES < 4 { 2 } else { 1 };
        const POWERS: usize = GROUP * BATCH;

        /// The count of the first block of a message.
        const FIRST: u32 = 2;

        /// Everything that depends on the key alone. Erased on drop.
        #[repr(C, align(64))]
        pub struct Key {
            /// Powers of the hash key, the highest first.
            powers: [__m128i; POWERS],
            /// Sums of both halves of each power, those of the vectors of a pair side by side.
            sums: [__m128i; POWERS / 2],
            rounds: [__m128i; ROUNDS + 1],
            _token: Token,
        }

        impl Drop for Key {
            fn drop(&mut self) {
                setup::wipe(&mut self.powers);
                setup::wipe(&mut self.sums);
                setup::wipe(&mut self.rounds);
            }
        }

        impl Key {
            pub fn new(token: Token, key: &[u8; 32]) -> Box<Self> {
                // SAFETY: the token says that the CPU has the features.
                unsafe { set_up(token, key) }
            }

            /// Encrypts one block.
            pub fn encrypt_block(&self, block: &mut [u8; BLOCK]) {
                // SAFETY: the key holds a token, so the CPU has the features.
                unsafe { encrypt_block(self, block) }
            }

            /// Folds whole blocks into the running hash `acc`.
            pub fn hash(&self, acc: &mut [u8; BLOCK], blocks: &[u8]) {
                // SAFETY: the key holds a token, so the CPU has the features.
                unsafe { hash(self, acc, blocks) }
            }

            /// Counter mode over whole blocks from `counter` (of 12 nonce bytes and a 32-bit count) on, and the hash of the
            /// ciphertext.
            pub fn crypt(
                &self,
                direction: Direction,
                acc: &mut [u8; BLOCK],
                counter: &mut [u8; BLOCK],
                data: InOutBuf<'_, '_, u8>,
            ) {
                // SAFETY: the key holds a token, so the CPU has the features.
                unsafe {
                    match direction {
                        Direction::Seal => crypt::<SEAL>(self, acc, counter, data),
                        Direction::Open => crypt::<OPEN>(self, acc, counter, data),
                    }
                }
            }

            /// [`crypt`](Self::crypt) without the hash, to measure what that costs.
            pub fn counter_mode(&self, counter: &mut [u8; BLOCK], data: InOutBuf<'_, '_, u8>) {
                // SAFETY: the key holds a token, so the CPU has the features.
                unsafe { crypt::<COUNTER>(self, &mut [0; BLOCK], counter, data) }
            }
        }

        /// What happens beside counter mode: the hash of the output, that of the input, or nothing.
        type Mode = u8;
        const SEAL: Mode = 0;
        const OPEN: Mode = 1;
        const COUNTER: Mode = 2;

        #[target_feature(enable = $features)]
        fn set_up(token: Token, key: &[u8; 32]) -> Box<Key> {
            let mut rounds = setup::round_keys(key);
            let mut powers = setup::powers::<POWERS>(&rounds);
            let mut sums = [rounds[0]; POWERS / 2];
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = i / LANES * 2 * LANES + i % LANES;
                let (a, b) = (powers[at], powers[at + LANES]);
                *sum = xor_block(
                    _mm_unpacklo_epi64(a, b),
                    _mm_unpackhi_epi64(a, b),
                );
            }
            let made = Box::new(Key {
                powers,
                sums,
                rounds,
                _token: token,
            });
            setup::wipe(&mut powers);
            setup::wipe(&mut sums);
            setup::wipe(&mut rounds);
            made
        }

        #[target_feature(enable = $features)]
        fn encrypt_block(key: &Key, block: &mut [u8; BLOCK]) {
            *block = to_bytes(setup::encrypt_block(&key.rounds, from_bytes(block)));
        }

        #[target_feature(enable = $features)]
        fn hash(key: &Key, acc: &mut [u8; BLOCK], blocks: &[u8]) {
            let (blocks, rest) = blocks.as_chunks::<BLOCK>();
            assert!(rest.is_empty());
            let mut sum = reverse(from_bytes(acc));
            for some in blocks.chunks(POWERS) {
                let mut products = Products::none();
                for (block, power) in some.iter().zip(&key.powers[POWERS - some.len()..]) {
                    let block = xor_block(reverse(from_bytes(block)), sum);
                    products.add(block, *power);
                    sum = _mm_setzero_si128();
                }
                sum = products.reduce();
            }
            *acc = to_bytes(reverse(sum));
        }

        #[target_feature(enable = $features)]
        fn crypt<const MODE: Mode>(
            key: &Key,
            acc: &mut [u8; BLOCK],
            counter: &mut [u8; BLOCK],
            data: InOutBuf<'_, '_, u8>,
        ) {
            assert!(data.len().is_multiple_of(BLOCK));
            let blocks = data.len() / BLOCK;
            let (src, dst) = data.into_raw();
            let (nonce, count) = counter.split_last_chunk_mut::<4>().expect("16 > 4");
            let mut origin = [0; BLOCK];
            origin[..nonce.len()].copy_from_slice(nonce);
            let first = u32::from_be_bytes(*count);
            *count = first.wrapping_add(blocks as u32).to_be_bytes();

            // Blocks before a batch can begin, batches, and what is left.
            let gap = FIRST.wrapping_sub(first) as usize % BATCH;
            let (before, batches) = match blocks.checked_sub(gap) {
                Some(rest) if rest >= BATCH => (gap, rest / BATCH),
                _ => (0, 0),
            };
            let behind = before + batches * BATCH;
            let mut run = Run {
                key,
                origin: reverse(from_bytes(&origin)),
                sum: reverse(from_bytes(acc)),
                src,
                dst,
                first,
            };
            // SAFETY: the three ranges are the blocks of `data`, one after the other, and none is longer than its function takes.
            unsafe {
                run.few::<MODE>(0, before);
                run.batches::<MODE>(before, batches);
                let half = (blocks - behind).min(BATCH);
                run.few::<MODE>(behind, half);
                run.few::<MODE>(behind + half, blocks - behind - half);
            }
            *acc = to_bytes(reverse(run.sum));
        }

        /// A piece of a message under way.
        struct Run<'a> {
            key: &'a Key,
            /// The nonce as a counter block with bytes reversed: the count is its lowest word, here 0.
            origin: __m128i,
            /// The running hash.
            sum: __m128i,
            src: *const u8,
            dst: *mut u8,
            /// The count of block 0.
            first: u32,
        }

        impl Run<'_> {
            /// The counter of block `at`, bytes reversed.
            #[inline]
            #[target_feature(enable = $features)]
            fn counter(&self, at: usize) -> __m128i {
                let count = self.first.wrapping_add(at as u32);
                _mm_insert_epi32::<0>(self.origin, count.cast_signed())
            }

            /// At most [`BATCH`] blocks, from block `at` on, wherever that lies.
            ///
            /// # Safety
            /// They lie within source and destination.
            #[target_feature(enable = $features)]
            unsafe fn few<const MODE: Mode>(&mut self, at: usize, blocks: usize) {
                assert!(blocks <= BATCH);
                if blocks == 0 {
                    return;
                }
                let mut stream = [_mm_setzero_si128(); BATCH];
                let counter = broadcast(self.counter(at));
                let mut states = [counter; 8];
                for (n, state) in states.iter_mut().enumerate() {
                    *state = whitened(self.key, add(counter, constant(&OFFSETS, n)));
                }
                for key in &self.key.rounds[1..ROUNDS] {
                    let key = broadcast(*key);
                    for state in &mut states {
                        *state = aesenc(*state, key);
                    }
                }
                let last = broadcast(self.key.rounds[ROUNDS]);
                for (n, state) in states.into_iter().enumerate() {
                    // SAFETY: vector `n` of eight lies within the array.
                    unsafe {
                        store(
                            stream.as_mut_ptr().add(n * LANES).cast(),
                            aesenclast(state, last),
                        );
                    }
                }
                let mut products = Products::none();
                for n in 0..blocks {
                    let offset = (at + n) * BLOCK;
                    // SAFETY: the caller's word; loads and stores have no alignment.
                    let (input, output) = unsafe {
                        let input = _mm_loadu_si128(self.src.add(offset).cast());
                        let output = xor_block(input, stream[n]);
                        _mm_storeu_si128(self.dst.add(offset).cast(), output);
                        (input, output)
                    };
                    if MODE != COUNTER {
                        let hashed = reverse(if MODE == SEAL { output } else { input });
                        let power = self.key.powers[POWERS - blocks + n];
                        products.add(xor_block(hashed, self.sum), power);
                        self.sum = _mm_setzero_si128();
                    }
                }
                if MODE != COUNTER {
                    self.sum = products.reduce();
                }
                setup::wipe(&mut stream);
            }

            /// Whole batches, from block `at` on, whose count is [`FIRST`] above a multiple of [`BATCH`].
            ///
            /// # Safety
            /// They lie within source and destination.
            #[target_feature(enable = $features)]
            unsafe fn batches<const MODE: Mode>(&mut self, at: usize, batches: usize) {
                if batches == 0 {
                    return;
                }
                let mut counters = Counters::new(self.key, self.counter(at));
                // SAFETY: the caller's word, here and below.
                let (src, dst) = unsafe { (self.src.add(at * BLOCK), self.dst.add(at * BLOCK)) };
                if MODE == COUNTER {
                    let mut none = Hash::<false>::new(self, batches);
                    // SAFETY: as above.
                    unsafe { self.stitch(&mut counters, &mut none, src, dst, dst, batches) };
                    return;
                }
                let mut hash = Hash::<true>::new(self, batches);
                if MODE == OPEN {
                    // SAFETY: as above.
                    unsafe { self.stitch(&mut counters, &mut hash, src, dst, src, batches) };
                } else {
                    let mut none = Hash::<false>::new(self, 0);
                    let rest = batches - 1;
                    // SAFETY: as above: one batch, the others with the hash of the one before each, and the hash of the last.
                    unsafe {
                        self.stitch(&mut counters, &mut none, src, dst, dst, 1);
                        let (src, next) = (src.add(BATCH_BYTES), dst.add(BATCH_BYTES));
                        self.stitch(&mut counters, &mut hash, src, next, dst, rest);
                        hash.batch(self.key, dst.add(rest * BATCH_BYTES));
                    }
                }
                self.sum = hash.sum();
            }

            /// Counter mode over batches, and where `HASH` is set the hash of as many at `hashed`.
            ///
            /// # Safety
            /// They are readable at `src` and `hashed` and writable at `dst`. `src` and `dst` are the same or do not overlap;
            /// `hashed` is either `src` or a batch before `dst`.
            #[target_feature(enable = $features)]
            unsafe fn stitch<const HASH: bool>(
                &self,
                counters: &mut Counters,
                hash: &mut Hash<HASH>,
                mut src: *const u8,
                mut dst: *mut u8,
                mut hashed: *const u8,
                batches: usize,
            ) {
                let (mut next, mut h) = (*counters, *hash);
                for _ in 0..batches {
                    let key = anew(self.key);
                    let mut s = next.take(key);
                    h.aim(key, hashed);
                    // SAFETY: a batch is readable at `hashed`.
                    unsafe {
                        round(&mut s, key, 1, &mut h);
                        round(&mut s, key, 2, &mut h);
                        round(&mut s, key, 3, &mut h);
                        round(&mut s, key, 4, &mut h);
                        round(&mut s, key, 5, &mut h);
                        round(&mut s, key, 6, &mut h);
                        round(&mut s, key, 7, &mut h);
                        round(&mut s, key, 8, &mut h);
                        round(&mut s, key, 9, &mut h);
                        round(&mut s, key, 10, &mut h);
                        round(&mut s, key, 11, &mut h);
                        round(&mut s, key, 12, &mut h);
                        round(&mut s, key, 13, &mut h);
                    }
                    let last = broadcast(key.rounds[ROUNDS]);
                    for (n, state) in s.into_iter().enumerate() {
                        // SAFETY: a batch is readable at `src` and writable at `dst`.
                        unsafe {
                            // The data joins the last round key: one addition does both.
                            let last = xor(last, load(src.add(n * VECTOR_BYTES)));
                            store(dst.add(n * VECTOR_BYTES), aesenclast(state, last));
                        }
                    }
                    h.end_batch();
                    src = src.wrapping_add(BATCH_BYTES);
                    dst = dst.wrapping_add(BATCH_BYTES);
                    hashed = hashed.wrapping_add(BATCH_BYTES);
                }
                (*counters, *hash) = (next, h);
            }
        }

        /// The same key, of which the compiler does not know that it is the same: it would load what a loop needs of it before the
        /// loop, and spill it.
        #[inline]
        fn anew(key: &Key) -> &Key {
            let mut pointer = core::ptr::from_ref(key);
            // SAFETY: no instruction: the pointer comes out as it went in, and so is as valid as the reference it was.
            unsafe {
                if cfg!(not(miri)) {
                    asm!("/* {0} */", inout(reg) pointer, options(readonly, nostack, preserves_flags));
                }
                &*pointer
            }
        }

        /// Round `n` of a batch, with two steps of the hash in it.
        ///
        /// # Safety
        /// That of [`Hash::step`].
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn round<const HASH: bool>(
            s: &mut [Vector; 8],
            key: &Key,
            n: usize,
            hash: &mut Hash<HASH>,
        ) {
            let key = broadcast(key.rounds[n]);
            // SAFETY: the caller's word.
            unsafe {
                s[0] = aesenc(s[0], key);
                s[1] = aesenc(s[1], key);
                s[2] = aesenc(s[2], key);
                s[3] = aesenc(s[3], key);
                hash.step(2 * (n - 1), s);
                s[4] = aesenc(s[4], key);
                s[5] = aesenc(s[5], key);
                s[6] = aesenc(s[6], key);
                s[7] = aesenc(s[7], key);
                hash.step(2 * (n - 1) + 1, s);
            }
        }

        /// Counters, bytes reversed, as they go into the first round.
        #[inline]
        #[target_feature(enable = $features)]
        fn whitened(key: &Key, counters: Vector) -> Vector {
            xor(
                shuffle(counters, constant(&BYTE_ORDER, 0)),
                broadcast(key.rounds[0]),
            )
        }

        /// The counters of the next batch.
        #[derive(Clone, Copy)]
        struct Counters {
            /// Bytes reversed, the count a multiple of [`BATCH`].
            reversed: Vector,
            /// The same as they go into the cipher, with the first round key.
            base: Vector,
        }

        impl Counters {
            /// From the counter of the first block of a batch.
            #[inline]
            #[target_feature(enable = $features)]
            fn new(key: &Key, first: __m128i) -> Self {
                let aligned = _mm_sub_epi32(first, _mm_cvtsi32_si128(FIRST.cast_signed()));
                let reversed = broadcast(aligned);
                Self {
                    reversed,
                    base: whitened(key, reversed),
                }
            }

            /// Eight vectors of counters, with the first round key added.
            #[inline]
            #[target_feature(enable = $features)]
            fn take(&mut self, key: &Key) -> [Vector; 8] {
                self.reversed = add(self.reversed, constant(&STEP, 0));
                let next = whitened(key, self.reversed);
                let mut states = [self.base; 8];
                for (n, state) in states.iter_mut().enumerate() {
                    *state = xor(carried(n, self.base, next), constant(&RESIDUES, n));
                }
                self.base = next;
                states
            }
        }

        /// The hash of batches, by Karatsuba's method; nothing where `ON` is not set.
        #[derive(Clone, Copy)]
        struct Hash<const ON: bool> {
            lo: Vector,
            /// Products of the sums of halves: `lo` and `hi` are in it too.
            mid: Vector,
            hi: Vector,
            /// The pair of vectors under way, `a` later as the sums of its halves.
            a: Vector,
            b: Vector,
            /// What the first vector of the next group takes up.
            carry: Vector,
            /// Batches to come.
            left: usize,
            /// The batch under way, and its powers and their sums.
            hashed: *const u8,
            powers: *const __m128i,
            sums: *const __m128i,
        }

        impl<const ON: bool> Hash<ON> {
            #[inline]
            #[target_feature(enable = $features)]
            fn new(run: &Run<'_>, batches: usize) -> Self {
                let zero = broadcast(_mm_setzero_si128());
                Self {
                    lo: zero,
                    mid: zero,
                    hi: zero,
                    a: zero,
                    b: zero,
                    carry: lowest(run.sum),
                    left: batches,
                    hashed: run.src,
                    powers: run.key.powers.as_ptr(),
                    sums: run.key.sums.as_ptr(),
                }
            }

            /// Begins a batch. Groups end where all batches end, so the first one may be shorter.
            #[inline]
            #[target_feature(enable = $features)]
            fn aim(&mut self, key: &Key, hashed: *const u8) {
                if ON {
                    let first = POWERS - BATCH - (self.left - 1) % GROUP * BATCH;
                    self.powers = key.powers[first..].as_ptr();
                    self.sums = key.sums[first / 2..].as_ptr();
                    self.hashed = hashed;
                }
            }

            /// Steps 0 to 23 take the batch up, six for each pair of vectors. The first pair comes last, since it has to wait for
            /// the running hash.
            ///
            /// # Safety
            /// A batch is readable where [`aim`](Self::aim) was told.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn step(&mut self, step: usize, s: &mut [Vector; 8]) {
                if ON && step < 24 {
                    let pair = (step / 6 + 1) % 4;
                    // SAFETY: the caller's word.
                    unsafe {
                        match step % 6 {
                            0 => self.a = self.data(2 * pair),
                            1 => self.outer(self.a, 2 * pair),
                            2 => self.b = self.data(2 * pair + 1),
                            3 => self.outer(self.b, 2 * pair + 1),
                            4 => self.a = xor(low_halves(self.a, self.b), high_halves(self.a, self.b)),
                            _ => self.inner(self.a, pair),
                        }
                    }
                    match step % 6 {
                        0 | 1 | 4 => pin!($register: (s[0]) (s[1]) (s[2]) (s[3]) (s[4]) (s[5]) (s[6]) (s[7]) (self.lo) (self.mid) (self.hi) (self.a)),
                        2 | 3 => pin!($register: (s[0]) (s[1]) (s[2]) (s[3]) (s[4]) (s[5]) (s[6]) (s[7]) (self.lo) (self.mid) (self.hi) (self.a) (self.b)),
                        _ => pin!($register: (s[0]) (s[1]) (s[2]) (s[3]) (s[4]) (s[5]) (s[6]) (s[7]) (self.lo) (self.mid) (self.hi)),
                    }
                }
            }

            /// All steps at once, and the end of the batch.
            ///
            /// # Safety
            /// A batch is readable at `hashed`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn batch(&mut self, key: &Key, hashed: *const u8) {
                self.aim(key, hashed);
                for pair in 0..4 {
                    // SAFETY: the caller's word.
                    unsafe {
                        let (a, b) = (self.data(2 * pair), self.data(2 * pair + 1));
                        self.outer(a, 2 * pair);
                        self.outer(b, 2 * pair + 1);
                        self.inner(xor(low_halves(a, b), high_halves(a, b)), pair);
                    }
                }
                self.end_batch();
            }

            /// Vector `n` of the batch, bytes reversed; the first with the running hash.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn data(&mut self, n: usize) -> Vector {
                // SAFETY: a batch is readable there, and has eight vectors.
                let data = unsafe { load(self.hashed.add(n * VECTOR_BYTES)) };
                let data = shuffle(data, constant(&BYTE_ORDER, 0));
                if n == 0 {
                    xor(data, core::mem::replace(&mut self.carry, broadcast(_mm_setzero_si128())))
                } else {
                    data
                }
            }

            /// The products of equal halves of vector `n`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn outer(&mut self, data: Vector, n: usize) {
                // SAFETY: the powers of a batch are there.
                let power = unsafe { load(self.powers.add(n * LANES).cast()) };
                self.lo = xor(self.lo, clmul::<0x00>(data, power));
                self.hi = xor(self.hi, clmul::<0x11>(data, power));
            }

            /// The products of the sums of halves of a pair of vectors.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn inner(&mut self, sums: Vector, pair: usize) {
                // SAFETY: the sums of the powers of a batch are there, half as many as blocks.
                let powers = unsafe { load(self.sums.add(pair * LANES).cast()) };
                self.mid = xor(self.mid, clmul::<0x00>(sums, powers));
                self.mid = xor(self.mid, clmul::<0x11>(sums, powers));
            }

            /// Ends a batch, and with it a group or not.
            #[inline]
            #[target_feature(enable = $features)]
            fn end_batch(&mut self) {
                if ON {
                    self.left -= 1;
                    if self.left.is_multiple_of(GROUP) {
                        self.carry = lowest(self.reduce());
                        let zero = broadcast(_mm_setzero_si128());
                        (self.lo, self.mid, self.hi) = (zero, zero, zero);
                    }
                }
            }

            /// The running hash after a group.
            #[inline]
            #[target_feature(enable = $features)]
            fn reduce(&self) -> __m128i {
                let mid = xor(self.mid, xor(self.lo, self.hi));
                let polynomial = set_halves(setup::POLYNOMIAL.cast_signed());
                let lo = xor(self.lo, shift_left::<8>(mid));
                let hi = xor(self.hi, shift_right::<8>(mid));
                let lo = xor(shuffle_words::<0x4e>(lo), clmul::<0x00>(lo, polynomial));
                let lo = xor(shuffle_words::<0x4e>(lo), clmul::<0x00>(lo, polynomial));
                fold(xor(lo, hi))
            }

            /// The running hash after all batches.
            #[inline]
            #[target_feature(enable = $features)]
            fn sum(&self) -> __m128i {
                fold(self.carry)
            }
        }

        /// Sums of products of single blocks.
        struct Products {
            lo: __m128i,
            mid: __m128i,
            hi: __m128i,
        }

        impl Products {
            #[inline]
            #[target_feature(enable = $features)]
            fn none() -> Self {
                let zero = _mm_setzero_si128();
                Self {
                    lo: zero,
                    mid: zero,
                    hi: zero,
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn add(&mut self, block: __m128i, power: __m128i) {
                self.lo = xor_block(self.lo, _mm_clmulepi64_si128::<0x00>(block, power));
                self.hi = xor_block(self.hi, _mm_clmulepi64_si128::<0x11>(block, power));
                self.mid = xor_block(self.mid, _mm_clmulepi64_si128::<0x01>(block, power));
                self.mid = xor_block(self.mid, _mm_clmulepi64_si128::<0x10>(block, power));
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn reduce(self) -> __m128i {
                setup::reduce(self.lo, self.mid, self.hi)
            }
        }

        /// Vector `n` of a table of blocks.
        #[inline]
        #[target_feature(enable = $features)]
        fn constant<T>(table: &[T], n: usize) -> Vector {
            let blocks = &table[n * LANES..(n + 1) * LANES];
            assert!(size_of_val(blocks) == VECTOR_BYTES);
            // SAFETY: as many bytes as a vector has are readable behind the reference; any bytes are a vector.
            unsafe { load(blocks.as_ptr().cast()) }
        }

        /// What is added to the first counter of any run for those that follow it; bytes reversed.
        static OFFSETS: [[u8; BLOCK]; BATCH] = blocks(0, 1, 0);
        /// What is added to all counters of a batch for those of the next one; bytes reversed.
        static STEP: [[u8; BLOCK]; BATCH] = blocks(BATCH, 0, 0);
        /// What a batch's counters have below the multiple of [`BATCH`], in the cipher's order of bytes.
        static RESIDUES: [[u8; BLOCK]; BATCH] = blocks(FIRST as usize, 1, BLOCK - 1);
        /// Reverses the bytes of blocks.
        static BYTE_ORDER: [[u8; BLOCK]; BATCH] =
            [[15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]; BATCH];

        /// A table whose block `n` has `(first + n * step) % BATCH` as its byte `at`; a count of `BATCH` alone stands as it is.
        const fn blocks(first: usize, step: usize, at: usize) -> [[u8; BLOCK]; BATCH] {
            let mut table = [[0; BLOCK]; BATCH];
            let mut n = 0;
            while n < BATCH {
                let count = first + n * step;
                table[n][at] = if step == 0 { count } else { count % BATCH } as u8;
                n += 1;
            }
            table
        }
    };
}
