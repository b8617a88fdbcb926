//! The aws-chunked decoder: a state machine over frames, without input or output of its own.
//!
//! ```text
//! body    = *chunk last [trailers] CRLF
//! chunk   = size [";chunk-signature=" 64HEX] CRLF data CRLF
//! last    = "0" [";chunk-signature=" 64HEX] CRLF
//! trailers = *(name ":" value CRLF)
//! ```
//!
//! Data is passed on in slices of the frames it came in; nothing but chunk headers and trailers is
//! ever buffered, whatever size a chunk claims. The last slice of a signed chunk is only yielded
//! once the chunk's signature holds. [`Decoder::finish`] must be called at the end of the body: a
//! body that merely stopped is an error there.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::BodyError;
use super::sigv4::ChunkSigner;
use crate::limits;

const SIGNATURE: &[u8] = b"chunk-signature=";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";
/// Trailers a client may announce.
const KNOWN_TRAILERS: [&str; 5] = [
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
];

/// Decodes one body.
pub struct Decoder {
    signer: Option<ChunkSigner>,
    /// The names announced in `x-amz-trailer`, if the body has a trailer at all.
    announced: Option<Vec<HeaderName>>,
    state: State,
    input: Bytes,
    /// A chunk header or the trailer, as far as it has come.
    text: Vec<u8>,
    /// Decoded bytes still to come, by the announced length.
    left: u64,
    /// A chunk of less than the least size was seen: it must have been the last.
    small: bool,
    signature: Vec<u8>,
    hash: Sha256,
    trailers: HeaderMap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Data {
        left: u64,
    },
    /// After a chunk's data: this many bytes of the line break are still to come.
    Break {
        left: usize,
    },
    Trailer,
}

impl Decoder {
    /// A decoder for a body of `length` decoded bytes. `signer` is there for signed chunks,
    /// `announced` (the value of `x-amz-trailer`) for bodies with a trailer.
    pub fn new(
        length: u64,
        signer: Option<ChunkSigner>,
        announced: Option<&str>,
    ) -> Result<Self, BodyError> {
        Ok(Self {
            signer,
            announced: announced.map(parse_announced).transpose()?,
            state: State::Header,
            input: Bytes::new(),
            text: Vec::new(),
            left: length,
            small: false,
            signature: Vec::new(),
            hash: Sha256::new(),
            trailers: HeaderMap::new(),
        })
    }

    /// Takes the next frame. The one before must have been decoded to its end.
    pub fn feed(&mut self, frame: Bytes) {
        debug_assert!(self.input.is_empty());
        self.input = frame;
    }

    /// The next piece of data in what was fed, or `None` when more is needed.
    pub fn decode(&mut self) -> Result<Option<Bytes>, BodyError> {
        while !self.input.is_empty() {
            match self.state {
                State::Header => {
                    if self.take_line(limits::CHUNK_HEADER_BYTES_MAX)? {
                        self.open_chunk()?;
                    }
                }
                State::Data { left } => {
                    let length = left.min(self.input.len() as u64);
                    let data = self.input.split_to(length as usize);
                    if self.signer.is_some() {
                        self.hash.update(&data);
                    }
                    self.left -= length;
                    self.state = State::Data {
                        left: left - length,
                    };
                    if left == length {
                        self.close_chunk()?;
                        self.state = State::Break { left: 2 };
                    }
                    return Ok(Some(data));
                }
                State::Break { left } => {
                    if self.input.get_u8() != b"\r\n"[2 - left] {
                        return Err(BodyError::Framing("a chunk is longer than its size"));
                    }
                    self.state = match left {
                        1 => State::Header,
                        _ => State::Break { left: left - 1 },
                    };
                }
                State::Trailer => {
                    if self.text.len() + self.input.len() > limits::TRAILER_BYTES_MAX {
                        return Err(BodyError::Trailer);
                    }
                    self.text.extend_from_slice(&self.input);
                    self.input.clear();
                }
            }
        }
        Ok(None)
    }

    /// The body is over: checks that it was whole, and its trailer.
    pub fn finish(&mut self) -> Result<(), BodyError> {
        debug_assert!(self.input.is_empty());
        if self.state != State::Trailer || self.left != 0 {
            return Err(BodyError::Incomplete);
        }
        let text = std::mem::take(&mut self.text);
        let mut entries = parse_trailer(&text)?;
        let Some(announced) = &self.announced else {
            return if entries.is_empty() {
                Ok(())
            } else {
                Err(BodyError::Trailer)
            };
        };
        if let Some(signer) = &self.signer {
            let at = entries
                .iter()
                .position(|(name, _)| name == TRAILER_SIGNATURE);
            let (_, signature) = entries.remove(at.ok_or(BodyError::Trailer)?);
            entries.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
            let mut canonical = Vec::new();
            for (name, value) in &entries {
                canonical.extend_from_slice(name.as_str().as_bytes());
                canonical.push(b':');
                canonical.extend_from_slice(value.as_bytes());
                canonical.push(b'\n');
            }
            if !signer.check_trailer(&canonical, signature.as_bytes()) {
                return Err(BodyError::Signature);
            }
        }
        for (name, value) in entries {
            let known = announced.contains(&name);
            if !known || self.trailers.insert(name, value).is_some() {
                return Err(BodyError::Trailer);
            }
        }
        if self.trailers.len() != announced.len() {
            return Err(BodyError::Trailer);
        }
        Ok(())
    }

    /// The trailer, once [`Decoder::finish`] found it good.
    pub fn trailers(&self) -> &HeaderMap {
        &self.trailers
    }

    /// Moves input to `text` up to a line feed; true once the line is whole.
    fn take_line(&mut self, limit: usize) -> Result<bool, BodyError> {
        let end = self.input.iter().position(|&b| b == b'\n');
        let length = end.map_or(self.input.len(), |at| at + 1);
        if self.text.len() + length > limit {
            return Err(BodyError::Framing("a chunk header is too long"));
        }
        self.text.extend_from_slice(&self.input[..length]);
        self.input.advance(length);
        Ok(end.is_some())
    }

    fn open_chunk(&mut self) -> Result<(), BodyError> {
        let line = self
            .text
            .strip_suffix(b"\r\n")
            .ok_or(BodyError::Framing("a chunk header ends badly"))?;
        let (size, extension) = match line.iter().position(|&b| b == b';') {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        let size = parse_size(size).ok_or(BodyError::Framing("a chunk size is not a number"))?;
        self.signature.clear();
        match (extension, &self.signer) {
            (Some(extension), Some(_)) => {
                let signature = extension
                    .strip_prefix(SIGNATURE)
                    .filter(|signature| signature.len() == 64)
                    .ok_or(BodyError::Framing("a chunk signature is malformed"))?;
                self.signature.extend_from_slice(signature);
            }
            (None, None) => {}
            (None, Some(_)) => return Err(BodyError::Framing("a chunk signature is missing")),
            (Some(_), None) => return Err(BodyError::Framing("a chunk extension is unknown")),
        }
        self.text.clear();
        if size == 0 {
            self.close_chunk()?;
            self.state = State::Trailer;
            return Ok(());
        }
        if size > self.left {
            return Err(BodyError::TooMuch);
        }
        if self.small {
            return Err(BodyError::ChunkTooSmall);
        }
        self.small = size < limits::CHUNK_BYTES_MIN;
        self.state = State::Data { left: size };
        Ok(())
    }

    fn close_chunk(&mut self) -> Result<(), BodyError> {
        let Some(signer) = &mut self.signer else {
            return Ok(());
        };
        let hash = self.hash.finalize_reset().into();
        if signer.check_chunk(hash, &self.signature) {
            Ok(())
        } else {
            Err(BodyError::Signature)
        }
    }
}

fn parse_size(digits: &[u8]) -> Option<u64> {
    // `from_str_radix` would take a sign.
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn parse_announced(value: &str) -> Result<Vec<HeaderName>, BodyError> {
    let mut names = Vec::new();
    for name in value.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let name = name.to_ascii_lowercase();
        // The signature need not be announced, but may be.
        if name == TRAILER_SIGNATURE {
            continue;
        }
        if !KNOWN_TRAILERS.contains(&name.as_str()) {
            return Err(BodyError::Request(
                "The value specified in the x-amz-trailer header is not supported",
            ));
        }
        let name = HeaderName::try_from(name).map_err(|_| BodyError::Trailer)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(BodyError::Request(
            "The x-amz-trailer header names no trailer",
        ));
    }
    Ok(names)
}

fn parse_trailer(text: &[u8]) -> Result<Vec<(HeaderName, HeaderValue)>, BodyError> {
    let mut entries = Vec::new();
    if text.last().is_some_and(|&b| b != b'\n') {
        // Cut within a line: what stands there is not what was sent.
        return Err(BodyError::Trailer);
    }
    // Some clients end a line by LF alone, and some put empty lines between.
    for line in text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii) {
        if line.is_empty() {
            continue;
        }
        let at = line
            .iter()
            .position(|&b| b == b':')
            .ok_or(BodyError::Trailer)?;
        let name = HeaderName::from_bytes(line[..at].trim_ascii());
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii());
        entries.push((
            name.map_err(|_| BodyError::Trailer)?,
            value.map_err(|_| BodyError::Trailer)?,
        ));
        if entries.len() > limits::TRAILERS_MAX {
            return Err(BodyError::Trailer);
        }
    }
    Ok(entries)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::super::sigv4::{ChunkSigner, Scope, SigningKey};

    pub const SECRET: &str = "not a secret";
    pub const SEED: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    pub const TIME: &str = "20260101T000000Z";
    pub const SCOPE: Scope<'_> = Scope {
        access_key: "key",
        date: "20260101",
        region: "us-east-1",
        service: "s3",
    };

    pub fn signer() -> ChunkSigner {
        ChunkSigner::new(SigningKey::derive(SECRET, &SCOPE), TIME, &SCOPE, SEED)
    }

    /// Encodes `data` in chunks of `size`, as a client would.
    pub fn encode(
        data: &[u8],
        size: usize,
        mut signer: Option<ChunkSigner>,
        trailer: &[(&str, &str)],
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in data.chunks(size).chain([&[][..]]) {
            out.extend_from_slice(format!("{:x}", chunk.len()).as_bytes());
            if let Some(signer) = &mut signer {
                let signature = signer.sign_chunk(chunk);
                out.extend_from_slice(format!(";chunk-signature={signature}").as_bytes());
            }
            out.extend_from_slice(b"\r\n");
            if !chunk.is_empty() {
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
        }
        let mut canonical = String::new();
        for (name, value) in trailer {
            out.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
            canonical.push_str(&format!("{name}:{value}\n"));
        }
        if let (Some(signer), false) = (&signer, trailer.is_empty()) {
            let signature = signer.sign_trailer(canonical.as_bytes());
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{encode, signer};
    use super::*;
    use proptest::prelude::*;

    const TRAILER: &[(&str, &str)] = &[("x-amz-checksum-crc32", "AAAAAA==")];

    fn decoder(signed: bool, trailer: bool, length: usize) -> Decoder {
        let announced = trailer.then_some("x-amz-checksum-crc32");
        Decoder::new(length as u64, signed.then(signer), announced).unwrap()
    }

    fn run(mut decoder: Decoder, frames: &[&[u8]]) -> Result<(Vec<u8>, HeaderMap), BodyError> {
        let mut out = Vec::new();
        for frame in frames {
            decoder.feed(Bytes::copy_from_slice(frame));
            while let Some(data) = decoder.decode()? {
                out.extend_from_slice(&data);
            }
        }
        decoder.finish()?;
        Ok((out, decoder.trailers().clone()))
    }

    fn sample(length: usize) -> Vec<u8> {
        (0..length as u32).map(|i| (i * 31) as u8).collect()
    }

    fn split<'a>(wire: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (wire.len() + 1)).collect();
        cuts.sort_unstable();
        let mut frames = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([wire.len()]) {
            frames.push(&wire[from..cut]);
            from = cut;
        }
        frames
    }

    proptest! {
        #[test]
        fn any_split_of_any_mode_gives_the_same_bytes(
            length in 0usize..60_000,
            size in 8192usize..70_000,
            signed: bool,
            trailer: bool,
            cuts in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let data = sample(length);
            let entries = if trailer { TRAILER } else { &[] };
            let wire = encode(&data, size, signed.then(signer), entries);
            let (out, trailers) =
                run(decoder(signed, trailer, length), &split(&wire, &cuts)).unwrap();
            prop_assert!(out == data);
            prop_assert_eq!(trailers.len(), usize::from(trailer));
        }

        #[test]
        fn a_flipped_byte_never_passes_when_signed(
            at: prop::sample::Index,
            flip in 1u8..,
            trailer: bool,
        ) {
            let data = sample(20_000);
            let entries = if trailer { TRAILER } else { &[] };
            let mut wire = encode(&data, 9000, Some(signer()), entries);
            let at = at.index(wire.len());
            wire[at] ^= flip;
            if let Ok((out, trailers)) = run(decoder(true, trailer, data.len()), &[&wire]) {
                // Letter case of a size or a name, and line ends of the trailer, mean nothing.
                prop_assert!(out == data);
                prop_assert_eq!(trailers.len(), usize::from(trailer));
                if trailer {
                    prop_assert_eq!(&trailers["x-amz-checksum-crc32"], "AAAAAA==");
                }
            }
        }

        #[test]
        fn a_cut_body_never_passes(cut: prop::sample::Index, signed: bool, trailer: bool) {
            let data = sample(20_000);
            let entries = if trailer { TRAILER } else { &[] };
            let wire = encode(&data, 9000, signed.then(signer), entries);
            let end = wire.len() - 4;
            let wire = &wire[..cut.index(end)];
            prop_assert!(run(decoder(signed, trailer, data.len()), &[wire]).is_err());
        }

        #[test]
        fn noise_is_an_error_and_not_a_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            signed: bool,
            trailer: bool,
        ) {
            prop_assert!(run(decoder(signed, trailer, 10), &[&noise]).is_err());
        }
    }

    #[test]
    fn chunks_swapped_or_left_out_are_caught() {
        let data = sample(27_000);
        let wire = encode(&data, 9000, Some(signer()), &[]);
        let header = wire.iter().position(|&b| b == b'\n').unwrap() + 1;
        let chunk = header + 9000 + 2;
        let mut swapped = wire.clone();
        swapped[..chunk].copy_from_slice(&wire[chunk..2 * chunk]);
        swapped[chunk..2 * chunk].copy_from_slice(&wire[..chunk]);
        assert_eq!(
            run(decoder(true, false, data.len()), &[&swapped]).unwrap_err(),
            BodyError::Signature
        );
        assert_eq!(
            run(decoder(true, false, 18_000), &[&wire[chunk..]]).unwrap_err(),
            BodyError::Signature
        );
    }

    #[test]
    fn a_tampered_chunk_yields_no_more_than_what_came_before_its_end() {
        let data = sample(9000);
        let mut wire = encode(&data, 9000, Some(signer()), &[]);
        let header = wire.iter().position(|&b| b == b'\n').unwrap() + 1;
        wire[header + 10] ^= 1;
        let mut decoder = decoder(true, false, data.len());
        decoder.feed(Bytes::from(wire));
        assert_eq!(decoder.decode().unwrap_err(), BodyError::Signature);
    }

    #[test]
    fn lengths_and_sizes_are_enforced() {
        let wire = encode(&sample(10_000), 10_000, None, &[]);
        let error = |length, wire: &[u8]| run(decoder(false, false, length), &[wire]).unwrap_err();
        assert_eq!(error(9_999, &wire), BodyError::TooMuch);
        assert_eq!(error(10_001, &wire), BodyError::Incomplete);
        let small = encode(&sample(100), 50, None, &[]);
        assert_eq!(error(100, &small), BodyError::ChunkTooSmall);
        assert!(
            run(
                decoder(false, false, 100),
                &[&encode(&sample(100), 100, None, &[])]
            )
            .is_ok()
        );
        let framing = |wire: &[u8]| matches!(error(10, wire), BodyError::Framing(_));
        assert!(framing(b"+a\r\n0123456789\r\n0\r\n\r\n"));
        assert!(framing(b"a\n0123456789\r\n0\r\n\r\n"));
        assert!(framing(b"a\r\n0123456789ab0\r\n\r\n"));
        assert!(framing(b"a;x=y\r\n0123456789\r\n0\r\n\r\n"));
        assert!(framing(&[b'0'; 2000]));
        assert_eq!(error(10, b"ffffffffffffffff\r\n"), BodyError::TooMuch);
    }

    #[test]
    fn the_trailer_must_be_the_announced_one() {
        let plain = |rest: &str| {
            let wire = format!("a\r\n0123456789\r\n0\r\n{rest}");
            run(decoder(false, true, 10), &[wire.as_bytes()])
        };
        assert!(plain("x-amz-checksum-crc32:AAAAAA==\r\n\r\n").is_ok());
        assert!(plain("X-Amz-Checksum-Crc32: AAAAAA==\n\r\n").is_ok());
        for wrong in [
            "\r\n",
            "",
            "x-amz-checksum-sha1:AAAAAA==\r\n\r\n",
            "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-checksum-crc32:BAAAAA==\r\n\r\n",
            "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-meta-a:b\r\n\r\n",
            "x-amz-checksum-crc32\r\n\r\n",
            "1\r\nx\r\n0\r\n\r\n",
        ] {
            assert_eq!(plain(wrong).unwrap_err(), BodyError::Trailer, "{wrong:?}");
        }
        // One that nobody announced.
        let wire = encode(&sample(10), 10, None, TRAILER);
        let error = run(decoder(false, false, 10), &[&wire]).unwrap_err();
        assert_eq!(error, BodyError::Trailer);
        // A signed body whose trailer is not signed, or signed wrongly.
        let bare = encode(&sample(10), 10, Some(signer()), &[]);
        let with = |tail: &str| [&bare[..bare.len() - 2], tail.as_bytes()].concat();
        let unsigned = with("x-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        let error = run(decoder(true, true, 10), &[&unsigned]).unwrap_err();
        assert_eq!(error, BodyError::Trailer);
        let forged = with(&format!(
            "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-trailer-signature:{}\r\n\r\n",
            "0".repeat(64)
        ));
        let error = run(decoder(true, true, 10), &[&forged]).unwrap_err();
        assert_eq!(error, BodyError::Signature);
    }

    #[test]
    fn only_checksums_can_be_announced() {
        for value in ["", "x-amz-meta-a", "x-amz-checksum-crc32,content-length"] {
            let error = Decoder::new(1, None, Some(value)).err();
            assert!(matches!(error, Some(BodyError::Request(_))), "{value}");
        }
    }
}
