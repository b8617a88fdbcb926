//! The handle by which a handler takes the body of its request.
//!
//! The service takes the body out of the request, leaves an empty one for the S3 layer, and puts an
//! [`Upload`] into the request's extensions. Nothing is read before the handler first asks, so that
//! a client that waits for `100 Continue` hears of a refusal first. The handle is bound to the
//! thread of its connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use s3s::auth::SecretKey;
use send_wrapper::SendWrapper;
use sha2::{Digest, Sha256};

use super::chunked::Decoder;
use super::form::File;
use super::sigv4::{Authorization, ChunkSigner, SigningKey};
use super::{BodyError, Payload, check_length};
use crate::conn::rt::Stall;
use crate::limits;
use strongroom_engine::OPEN_END_BYTES;

/// A request body as it comes from the connection.
pub type Source = Pin<Box<dyn Body<Data = Bytes, Error = hyper::Error>>>;

/// The file of a form. Its length is known only at its end; the last bytes it may have are held back until then, so that whoever
/// takes it hears of its length while more than `OPEN_END_BYTES` of what was announced are to come.
struct FormFile {
    file: File,
    /// What it may have at most, where that is known.
    announced: Option<u64>,
    /// What the form's policy allows.
    allowed: RangeInclusive<u64>,
    passed: u64,
    held: VecDeque<Bytes>,
    length: Option<u64>,
    told: bool,
}

/// The body of a `PutObject`, `UploadPart` or form upload, decoded. Clones are the same body.
#[derive(Clone)]
pub struct Upload(SendWrapper<Rc<Inner>>);

struct Inner {
    length: Option<u64>,
    state: RefCell<State>,
}

struct State {
    /// Until its end, or until someone else takes the rest.
    source: Option<Source>,
    codec: Codec,
    stall: Stall,
    touched: bool,
    ended: Option<Result<(), BodyError>>,
}

enum Codec {
    Plain {
        left: u64,
        hash: Option<(Sha256, [u8; 32])>,
    },
    Chunked(Box<Decoder>),
    Form(Box<FormFile>),
    /// The headers make no sense together; the S3 layer will mostly have said so first.
    Refused(BodyError),
}

impl Upload {
    /// The body of this request, for a handler that takes it from here and not from its input.
    pub fn from_request(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Self>().cloned()
    }

    /// The object's length, as announced; at most so much where the body is open-ended.
    pub fn decoded_length(&self) -> Option<u64> {
        self.0.length
    }

    /// Whether the announced length is only what it has at most.
    pub fn is_open_ended(&self) -> bool {
        self.0.length.is_some() && matches!(self.0.state.borrow().codec, Codec::Form(_))
    }

    /// The length of an open-ended body, told once, after the piece that was asked for last and before it is handed on.
    pub fn take_end(&self) -> Option<u64> {
        match &mut self.0.state.borrow_mut().codec {
            Codec::Form(form) if !form.told => {
                form.told = form.length.is_some();
                form.length
            }
            _ => None,
        }
    }

    /// The next piece of data; `None` at the end of a body that was all it promised to be. After an
    /// error every further call returns the same error, so that it cannot be taken for the end.
    pub async fn next(&self) -> Option<Result<Bytes, BodyError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Like [`Upload::next`].
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut state = self.0.state.borrow_mut();
        if let Some(ended) = &state.ended {
            return Poll::Ready(ended.clone().err().map(Err));
        }
        state.touched = true;
        let next = ready!(state.poll_data(cx));
        match &next {
            Some(Ok(_)) => {}
            Some(Err(error)) => state.ended = Some(Err(error.clone())),
            None => {
                state.ended = Some(Ok(()));
                // What follows the file of a form is left for others to drop.
                if !matches!(state.codec, Codec::Form(_)) {
                    state.source = None;
                }
            }
        }
        Poll::Ready(next)
    }

    /// What followed the data: the announced checksums. Empty before the end.
    pub fn trailers(&self) -> HeaderMap {
        let state = self.0.state.borrow();
        match (&state.codec, &state.ended) {
            (Codec::Chunked(decoder), Some(Ok(()))) => decoder.trailers().clone(),
            _ => HeaderMap::new(),
        }
    }

    /// Whether anyone has asked for data yet.
    pub(crate) fn touched(&self) -> bool {
        self.0.state.borrow().touched
    }

    /// Takes what the connection may still send of the body.
    pub(crate) fn take_rest(&self) -> Option<Source> {
        let mut state = self.0.state.borrow_mut();
        state.ended.get_or_insert(Err(BodyError::Incomplete));
        state.source.take()
    }

    /// Prepares the body of a request with these headers. `secret` finds the secret of an access
    /// key; it is asked for signed chunks only.
    pub fn new(
        headers: &HeaderMap,
        source: Source,
        secret: impl FnOnce(&str) -> Option<SecretKey>,
    ) -> Self {
        match codec(headers, secret) {
            Ok((length, codec)) => Self::with(Some(length), source, codec),
            Err(error) => Self::with(None, source, Codec::Refused(error)),
        }
    }

    /// The file of a form, which goes on in `source`. It has `length` bytes at most, if that is known, and may have as many as
    /// `allowed`.
    pub(crate) fn of_form(
        source: Source,
        file: File,
        length: Option<u64>,
        allowed: RangeInclusive<u64>,
    ) -> Self {
        let form = FormFile {
            file,
            announced: length,
            allowed,
            passed: 0,
            held: VecDeque::new(),
            length: None,
            told: false,
        };
        Self::with(length, source, Codec::Form(Box::new(form)))
    }

    /// A body that is there already.
    pub(crate) fn of_bytes(bytes: Bytes) -> Self {
        let left = bytes.len() as u64;
        let source = Full::new(bytes).map_err(|never| match never {});
        let codec = Codec::Plain { left, hash: None };
        Self::with(Some(left), Box::pin(source), codec)
    }

    fn with(length: Option<u64>, source: Source, codec: Codec) -> Self {
        Self(SendWrapper::new(Rc::new(Inner {
            length,
            state: RefCell::new(State {
                source: Some(source),
                codec,
                stall: Stall::new(limits::BODY_STALL_TIMEOUT),
                touched: false,
                ended: None,
            }),
        })))
    }
}

/// Reads a whole body of at most `limit` decoded bytes.
pub async fn gather(upload: &Upload, limit: usize) -> Result<Bytes, BodyError> {
    if upload.decoded_length().is_some_and(|n| n > limit as u64) {
        return Err(BodyError::TooLarge);
    }
    let mut whole = BytesMut::new();
    while let Some(data) = upload.next().await {
        let data = data?;
        if whole.len() + data.len() > limit {
            return Err(BodyError::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

impl State {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Codec::Refused(error) = &self.codec {
            return Poll::Ready(Some(Err(error.clone())));
        }
        loop {
            if let Codec::Chunked(decoder) = &mut self.codec
                && let Some(data) = decoder.decode().transpose()
            {
                return Poll::Ready(Some(data));
            }
            if let Codec::Form(form) = &mut self.codec {
                match form.decode().transpose() {
                    Some(data) => return Poll::Ready(Some(data)),
                    None if form.length.is_some() => return Poll::Ready(None),
                    None => {}
                }
            }
            let Some(source) = &mut self.source else {
                return Poll::Ready(Some(Err(BodyError::Incomplete)));
            };
            let frame = match source.as_mut().poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.stall.poll_stalled(cx));
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
            };
            self.stall.progress();
            match frame {
                Some(Ok(frame)) => {
                    // Trailers of HTTP itself mean nothing to S3.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    if data.is_empty() {
                        continue;
                    }
                    match &mut self.codec {
                        Codec::Plain { left, hash } => {
                            let length = data.len() as u64;
                            if length > *left {
                                return Poll::Ready(Some(Err(BodyError::TooMuch)));
                            }
                            *left -= length;
                            if let Some((hash, _)) = hash {
                                hash.update(&data);
                            }
                            return Poll::Ready(Some(Ok(data)));
                        }
                        Codec::Chunked(decoder) => decoder.feed(data),
                        Codec::Form(form) => form.file.feed(data),
                        Codec::Refused(error) => return Poll::Ready(Some(Err(error.clone()))),
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a request body broke off");
                    return Poll::Ready(Some(Err(BodyError::Connection)));
                }
                None => return Poll::Ready(self.finish().err().map(Err)),
            }
        }
    }

    fn finish(&mut self) -> Result<(), BodyError> {
        match &mut self.codec {
            Codec::Plain { left, .. } if *left != 0 => Err(BodyError::Incomplete),
            Codec::Plain { hash, .. } => match hash.take() {
                // No secret is compared here: the client chose both sides.
                Some((hash, expected)) => match hash.finalize() == expected {
                    true => Ok(()),
                    false => Err(BodyError::Hash),
                },
                None => Ok(()),
            },
            Codec::Chunked(decoder) => decoder.finish(),
            // Its end was not seen.
            Codec::Form(_) => Err(BodyError::Incomplete),
            Codec::Refused(error) => Err(error.clone()),
        }
    }
}

impl FormFile {
    /// The next piece; none where another frame is needed, or at the end.
    fn decode(&mut self) -> Result<Option<Bytes>, BodyError> {
        let free = match self.announced {
            Some(most) => most.saturating_sub(OPEN_END_BYTES + 1),
            None => u64::MAX,
        };
        while self.length.is_none()
            && let Some(mut data) = self.file.decode()
        {
            let now = free.saturating_sub(self.passed).min(data.len() as u64);
            let later = data.split_off(now as usize);
            if !later.is_empty() {
                self.held.push_back(later);
            }
            if self.file.ended() {
                self.end(now)?;
            }
            if !data.is_empty() {
                self.passed += now;
                return Ok(Some(data));
            }
        }
        if self.length.is_none() && self.file.ended() {
            self.end(0)?;
        }
        Ok(self.length.and_then(|_| self.held.pop_front()))
    }

    /// Its length is what was passed on, `now`, and what is held.
    fn end(&mut self, now: u64) -> Result<(), BodyError> {
        let held: u64 = self.held.iter().map(|data| data.len() as u64).sum();
        let length = self.passed + now + held;
        check_length(length..=length, &self.allowed)?;
        if self
            .announced
            .is_some_and(|most| length > most || most - length > limits::FORM_AFTER_BYTES_MAX)
        {
            return Err(BodyError::Form("too much follows its file"));
        }
        self.length = Some(length);
        Ok(())
    }
}

fn codec(
    headers: &HeaderMap,
    secret: impl FnOnce(&str) -> Option<SecretKey>,
) -> Result<(u64, Codec), BodyError> {
    let payload = Payload::of(headers).ok_or(BodyError::Request(
        "The x-amz-content-sha256 header is not valid",
    ))?;
    let Payload::Chunked { signed, trailer } = payload else {
        let length = number(headers, header::CONTENT_LENGTH.as_str())?;
        let left = length.ok_or(BodyError::MissingLength)?;
        let hash = match payload {
            Payload::Hashed(expected) => Some((Sha256::new(), expected)),
            _ => None,
        };
        return Ok((left, Codec::Plain { left, hash }));
    };
    let length = number(headers, "x-amz-decoded-content-length")?;
    let length = length.ok_or(BodyError::MissingLength)?;
    let signer = match signed {
        true => Some(signer(headers, secret)?),
        false => None,
    };
    let announced = match trailer {
        true => Some(
            text(headers, "x-amz-trailer")?
                .ok_or(BodyError::Request("The x-amz-trailer header is missing"))?,
        ),
        false => None,
    };
    let decoder = Decoder::new(length, signer, announced)?;
    Ok((length, Codec::Chunked(Box::new(decoder))))
}

fn signer(
    headers: &HeaderMap,
    secret: impl FnOnce(&str) -> Option<SecretKey>,
) -> Result<ChunkSigner, BodyError> {
    let unsigned = BodyError::Request("Signed chunks need a signed request");
    let header = text(headers, header::AUTHORIZATION.as_str())?.ok_or(unsigned.clone())?;
    let authorization = Authorization::parse(header).ok_or(unsigned.clone())?;
    let time = text(headers, "x-amz-date")?.ok_or(unsigned.clone())?;
    let secret = secret(authorization.scope.access_key).ok_or(unsigned)?;
    let key = SigningKey::derive(secret.expose(), &authorization.scope);
    Ok(ChunkSigner::new(
        key,
        time,
        &authorization.scope,
        authorization.signature,
    ))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, BodyError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(BodyError::Request("A header was sent twice"));
    }
    value
        .map(|value| value.to_str())
        .transpose()
        .map_err(|_| BodyError::Request("A header is not text"))
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, BodyError> {
    let parse = |value: &str| {
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| value.parse().ok()).flatten()
    };
    match text(headers, name)? {
        None => Ok(None),
        Some(value) => parse(value)
            .map(Some)
            .ok_or(BodyError::Request("A length is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunked::testing::{SCOPE, SECRET, SEED, TIME, encode, signer};
    use super::*;
    use futures_lite::future::block_on;
    use http_body::Frame;
    use std::collections::VecDeque;

    struct Frames(VecDeque<Bytes>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }
    }

    fn upload(headers: &[(&'static str, &str)], wire: &[u8]) -> Upload {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let frames = wire.chunks(7777).map(Bytes::copy_from_slice).collect();
        Upload::new(&map, Box::pin(Frames(frames)), |key| {
            (key == SCOPE.access_key).then(|| SecretKey::from(SECRET))
        })
    }

    fn read(upload: &Upload) -> Result<Vec<u8>, BodyError> {
        block_on(gather(upload, usize::MAX)).map(Vec::from)
    }

    fn authorization() -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders=host, Signature={SEED}",
            SCOPE.access_key,
            SCOPE.signed()
        )
    }

    #[test]
    fn plain_bodies_keep_their_length_and_hash() {
        let data = vec![5; 20_000];
        let hash = hex::encode(Sha256::digest(&data));
        let hashed = [("content-length", "20000"), ("x-amz-content-sha256", &hash)];
        assert_eq!(read(&upload(&hashed, &data)).unwrap(), data);
        let mut other = data.clone();
        other[19_999] = 6;
        let broken = upload(&hashed, &other);
        assert_eq!(read(&broken).unwrap_err(), BodyError::Hash);
        // Asked again it is no clean end.
        let again = block_on(broken.next()).unwrap();
        assert_eq!(again.unwrap_err(), BodyError::Hash);

        let unsigned = [
            ("content-length", "20000"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ];
        assert_eq!(read(&upload(&unsigned, &other)).unwrap(), other);
        assert_eq!(
            read(&upload(&unsigned, &data[1..])).unwrap_err(),
            BodyError::Incomplete
        );
        let longer = [&data[..], b"x"].concat();
        let error = read(&upload(&unsigned, &longer)).unwrap_err();
        assert_eq!(error, BodyError::TooMuch);
        let error = read(&upload(&unsigned[1..], &data)).unwrap_err();
        assert_eq!(error, BodyError::MissingLength);
    }

    #[test]
    fn signed_chunks_follow_the_request_signature() {
        let data = vec![9; 50_000];
        let trailer = [("x-amz-checksum-crc32", "AAAAAA==")];
        let wire = encode(&data, 16384, Some(signer()), &trailer);
        let authorization = authorization();
        let headers = [
            (
                "x-amz-content-sha256",
                "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            ),
            ("x-amz-decoded-content-length", "50000"),
            ("x-amz-trailer", "x-amz-checksum-crc32"),
            ("x-amz-date", TIME),
            ("authorization", &authorization),
        ];
        let good = upload(&headers, &wire);
        assert_eq!(good.decoded_length(), Some(50_000));
        assert!(!good.touched());
        assert!(good.trailers().is_empty());
        assert_eq!(read(&good).unwrap(), data);
        assert_eq!(good.trailers()["x-amz-checksum-crc32"], "AAAAAA==");
        assert!(good.take_rest().is_none());

        let elsewhere = authorization.replace("Signature=0", "Signature=1");
        let mut other = headers;
        other[4].1 = &elsewhere;
        let error = read(&upload(&other, &wire)).unwrap_err();
        assert_eq!(error, BodyError::Signature);
        let stranger = authorization.replace("Credential=key", "Credential=you");
        other[4].1 = &stranger;
        let error = read(&upload(&other, &wire)).unwrap_err();
        assert!(matches!(error, BodyError::Request(_)), "{error}");
    }

    #[test]
    fn a_dropped_body_can_be_taken_and_is_no_success() {
        let data = vec![1; 20_000];
        let upload = upload(&[("content-length", "20000")], &data);
        assert!(block_on(upload.next()).unwrap().is_ok());
        assert!(upload.take_rest().is_some());
        assert!(block_on(upload.next()).unwrap().is_err());
    }

    fn of_form(
        file: &[u8],
        after: &str,
        most: Option<u64>,
        allowed: RangeInclusive<u64>,
    ) -> Upload {
        let mut head = super::super::form::Head::new(b"B");
        let start = b"--B\r\nContent-Disposition: form-data; name=file\r\n\r\n";
        let (_, found) = head.feed(start).unwrap().unwrap();
        let wire = [file, after.as_bytes()].concat();
        let frames = wire.chunks(7777).map(Bytes::copy_from_slice).collect();
        Upload::of_form(Box::pin(Frames(frames)), found, most, allowed)
    }

    #[test]
    fn the_file_of_a_form_ends_where_its_boundary_is() {
        let data: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
        let (end, more) = ("\r\n--B--\r\n", "\r\n--B\r\nmore\r\n--B--\r\n");
        let length = data.len() as u64;
        let slack = limits::FORM_AFTER_BYTES_MAX;
        for (after, most) in [
            (end, None),
            (more, None),
            (end, Some(length)),
            (more, Some(length + 4)),
            (more, Some(length + slack)),
        ] {
            let upload = of_form(&data, after, most, 0..=length);
            let (mut seen, mut told) = (Vec::new(), None);
            while let Some(piece) = block_on(upload.next()) {
                if let Some(end) = upload.take_end() {
                    assert!(told.replace((end, seen.len() as u64)).is_none());
                }
                seen.extend_from_slice(&piece.unwrap());
            }
            assert!(seen == data, "{most:?}");
            assert_eq!(upload.is_open_ended(), most.is_some());
            if let Some(most) = most {
                let (end, at) = told.expect("the end is told");
                assert!(end == length && at + OPEN_END_BYTES < most);
            }
            assert!(
                upload.take_rest().is_some(),
                "what follows is dropped elsewhere"
            );
        }
        let refused =
            |after, most, allowed| read(&of_form(&data, after, most, allowed)).unwrap_err();
        for most in [None, Some(length)] {
            let error = refused("\r\n--", most, 0..=length);
            assert_eq!(error, BodyError::Incomplete);
            let error = refused(end, most, 0..=length - 1);
            let max = length - 1;
            assert_eq!(error, BodyError::LargerThanAllowed { length, max });
            let error = refused(end, most, length + 1..=u64::MAX);
            let min = length + 1;
            assert_eq!(error, BodyError::SmallerThanAllowed { length, min });
        }
        let error = refused(more, Some(length + slack + 1), 0..=length);
        assert!(matches!(error, BodyError::Form(_)), "{error}");
        assert_eq!(read(&Upload::of_bytes(data.clone().into())).unwrap(), data);
    }

    #[test]
    fn gathering_is_bounded() {
        let data = vec![1; 20_000];
        let body = upload(&[("content-length", "20000")], &data);
        let error = block_on(gather(&body, 19_999)).unwrap_err();
        assert_eq!(error, BodyError::TooLarge);
        assert!(!body.touched(), "an announced excess is not read");
        let body = upload(&[("content-length", "20000")], &data);
        assert_eq!(block_on(gather(&body, 20_000)).unwrap().len(), 20_000);
    }
}
