//! A POST form (`multipart/form-data`), taken apart as it streams: the fields before the file are gathered, within a bound; the file
//! is handed on as it comes.
//!
//! A state machine without input or output. Whoever drives it feeds frames to [`Head`] until the file begins, and then to [`File`].
//! What follows the file is dropped: S3 reads no field behind it. Boundaries are found across frames of any size.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, header};
use memchr::memmem;

use super::BodyError;
use crate::limits;

/// The name of the field that is the file.
const FILE: &str = "file";
/// RFC 2046.
const BOUNDARY_BYTES_MAX: usize = 70;

/// The boundary of a form, if the headers announce one.
pub fn boundary(headers: &HeaderMap) -> Option<Result<Vec<u8>, BodyError>> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.trim();
    let (kind, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")
        .filter(|b| (1..=BOUNDARY_BYTES_MAX).contains(&b.len()) && b.is_ascii())
        .map(String::into_bytes);
    Some(boundary.ok_or(BodyError::Form("the content type names no boundary")))
}

/// What stands in front of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// By lower-case name, in order.
    pub fields: Vec<(String, String)>,
    /// The last part of the file's name, empty where it has none.
    pub filename: String,
}

impl Fields {
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The fields of a form, on their way in.
pub struct Head {
    /// CR, LF, two dashes and the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    /// Bytes of the buffer in which what comes next does not begin.
    searched: usize,
    fed: usize,
    step: Step,
    found: Fields,
}

enum Step {
    /// Up to the first delimiter.
    Preamble,
    /// Behind a delimiter.
    Delimiter,
    Headers,
    Value {
        name: String,
    },
}

impl Head {
    pub fn new(boundary: &[u8]) -> Self {
        let delimiter = [b"\r\n--", boundary].concat();
        Head {
            delimiter,
            // The first delimiter may stand at the very beginning.
            buffer: BytesMut::from(&b"\r\n"[..]),
            searched: 0,
            fed: 0,
            step: Step::Preamble,
            found: Fields::default(),
        }
    }

    /// Takes the next bytes of the body. At the file, gives the fields and what goes on with it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<(Fields, File)>, BodyError> {
        self.buffer.extend_from_slice(bytes);
        self.fed += bytes.len();
        while self.step()? {
            if matches!(&self.step, Step::Value { name } if name == FILE) {
                let mut file = File::new(std::mem::take(&mut self.delimiter));
                let rest = std::mem::take(&mut self.buffer).freeze();
                let head_bytes = self.fed - rest.len();
                if head_bytes > limits::FORM_FIELDS_BYTES_MAX {
                    return Err(BodyError::FormTooLarge);
                }
                file.head_bytes = head_bytes as u64;
                file.feed(rest);
                return Ok(Some((std::mem::take(&mut self.found), file)));
            }
        }
        if self.fed > limits::FORM_FIELDS_BYTES_MAX {
            return Err(BodyError::FormTooLarge);
        }
        Ok(None)
    }

    /// Goes one step on, if the buffer holds enough for it.
    fn step(&mut self) -> Result<bool, BodyError> {
        match &mut self.step {
            Step::Preamble => {
                let Some(_) = self.take_until_delimiter() else {
                    return Ok(false);
                };
                self.step = Step::Delimiter;
            }
            Step::Delimiter => {
                let Some(next) = self.buffer.get(..2) else {
                    return Ok(false);
                };
                match next {
                    b"\r\n" => self.step = Step::Headers,
                    b"--" => return Err(BodyError::Form("it holds no file")),
                    _ => return Err(BodyError::Form("a boundary does not end its line")),
                }
                // The line's end stays: headers may be none.
            }
            Step::Headers => {
                let end = memmem::find(&self.buffer[self.searched..], b"\r\n\r\n");
                let Some(end) = end.map(|at| self.searched + at) else {
                    self.searched = self.buffer.len().saturating_sub(3);
                    return Ok(false);
                };
                let headers = self.take(end);
                self.buffer.advance(4);
                let (name, filename) = disposition(&headers)?;
                if name == FILE {
                    self.found.filename = filename;
                }
                self.step = Step::Value { name };
            }
            Step::Value { name } => {
                let name = std::mem::take(name);
                let Some(value) = self.take_until_delimiter() else {
                    self.step = Step::Value { name };
                    return Ok(false);
                };
                let value = String::from_utf8(value.into())
                    .map_err(|_| BodyError::Form("a field is not UTF-8"))?;
                if self.found.fields.len() == limits::FORM_FIELDS_MAX {
                    return Err(BodyError::FormTooLarge);
                }
                self.found.fields.push((name, value));
                self.step = Step::Delimiter;
            }
        }
        Ok(true)
    }

    fn take_until_delimiter(&mut self) -> Option<BytesMut> {
        match memmem::find(&self.buffer[self.searched..], &self.delimiter) {
            Some(at) => {
                let taken = self.take(self.searched + at);
                self.buffer.advance(self.delimiter.len());
                Some(taken)
            }
            None => {
                let held = self.delimiter.len() - 1;
                self.searched = self.buffer.len().saturating_sub(held);
                None
            }
        }
    }

    fn take(&mut self, to: usize) -> BytesMut {
        self.searched = 0;
        self.buffer.split_to(to)
    }
}

/// The file of a form, on its way in.
pub struct File {
    delimiter: memmem::Finder<'static>,
    /// The end of what came before, in which a delimiter may have begun: shorter than one.
    held: BytesMut,
    frame: Bytes,
    ended: bool,
    head_bytes: u64,
}

impl File {
    fn new(delimiter: Vec<u8>) -> Self {
        File {
            delimiter: memmem::Finder::new(&delimiter).into_owned(),
            held: BytesMut::new(),
            frame: Bytes::new(),
            ended: false,
            head_bytes: 0,
        }
    }

    /// The file's length in a body of `total` bytes, at most: it has as much if nothing follows it.
    pub fn length_within(&self, total: u64) -> Option<u64> {
        let end = self.delimiter.needle().len() + b"--\r\n".len();
        total.checked_sub(self.head_bytes + end as u64)
    }

    /// Bytes of the body from the file on.
    pub fn rest_of(&self, total: u64) -> u64 {
        total.saturating_sub(self.head_bytes)
    }

    /// Whether all of it has come.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Takes a frame. The one before it must have been used up.
    pub fn feed(&mut self, frame: Bytes) {
        assert!(self.frame.is_empty(), "the frame before is used up");
        if !self.ended {
            self.frame = frame;
        }
    }

    /// The next piece of the file; none where another frame is needed, or at the end.
    pub fn decode(&mut self) -> Option<Bytes> {
        while !self.frame.is_empty() {
            let piece = match self.held.is_empty() {
                true => self.out_of_frame(),
                false => self.out_of_held(),
            };
            if !piece.is_empty() {
                return Some(piece);
            }
        }
        None
    }

    fn out_of_frame(&mut self) -> Bytes {
        let frame = std::mem::take(&mut self.frame);
        match self.delimiter.find(&frame) {
            Some(at) => {
                self.ended = true;
                frame.slice(..at)
            }
            None => {
                let kept = frame.len() - possible_start(&frame, self.delimiter.needle());
                self.held.extend_from_slice(&frame[kept..]);
                frame.slice(..kept)
            }
        }
    }

    /// Looks for a delimiter that began in an earlier frame.
    fn out_of_held(&mut self) -> Bytes {
        let length = self.delimiter.needle().len();
        let before = self.held.len();
        let more = self.frame.len().min(length - 1);
        self.held.extend_from_slice(&self.frame[..more]);
        if let Some(at) = self.delimiter.find(&self.held) {
            self.ended = true;
            self.frame = Bytes::new();
            return std::mem::take(&mut self.held).split_to(at).freeze();
        }
        if more == length - 1 {
            // Nothing of what was held begins a delimiter; the frame is looked at by itself.
            return std::mem::take(&mut self.held).split_to(before).freeze();
        }
        self.frame = Bytes::new();
        let kept = self.held.len() - possible_start(&self.held, self.delimiter.needle());
        self.held.split_to(kept).freeze()
    }
}

/// How many bytes at the end of `bytes` may be the beginning of `delimiter`.
fn possible_start(bytes: &[u8], delimiter: &[u8]) -> usize {
    (1..delimiter.len().min(bytes.len() + 1))
        .rev()
        .find(|n| bytes.ends_with(&delimiter[..*n]))
        .unwrap_or(0)
}

/// The name of a part, lower-case, and the last part of its file's name.
fn disposition(headers: &[u8]) -> Result<(String, String), BodyError> {
    let text = std::str::from_utf8(headers)
        .map_err(|_| BodyError::Form("the headers of a part are not UTF-8"))?;
    let value = text
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
        .map(|(_, value)| value.trim())
        .ok_or(BodyError::Form("a part has no content disposition"))?;
    let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return Err(BodyError::Form("a part is no form data"));
    }
    let name = parameter(parameters, "name").ok_or(BodyError::Form("a part has no name"))?;
    let filename = parameter(parameters, "filename").unwrap_or_default();
    // Some browsers sent whole paths.
    let filename = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    Ok((name.to_ascii_lowercase(), filename.to_owned()))
}

/// A parameter of a header's value, without its quotes.
fn parameter(parameters: &str, wanted: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t', '\r', '\n']);
        let (name, value) = rest.split_once('=')?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = value.find(';').unwrap_or(value.len());
                (value[..end].trim().to_owned(), &value[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

/// Up to the closing quote, and what follows it. Browsers write a quote as `%22` or `\"`; a backslash alone stands for itself.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = quoted;
    loop {
        let at = rest.find(['"', '\\'])?;
        value.push_str(&rest[..at]);
        let escaped = rest[at..].starts_with("\\\"");
        match (escaped, rest.as_bytes()[at]) {
            (true, _) => value.push('"'),
            (false, b'"') => return Some((value.replace("%22", "\""), &rest[at + 1..])),
            (false, _) => value.push('\\'),
        }
        rest = &rest[at + if escaped { 2 } else { 1 }..];
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn form(fields: &[(&str, &str)], file: &[u8], after: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in fields {
            let part = format!(
                "--BOUND\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(
            b"--BOUND\r\nContent-Type: a/b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x/y z.txt\"\r\n\r\n",
        );
        out.extend_from_slice(file);
        out.extend_from_slice(after.as_bytes());
        out
    }

    const END: &str = "\r\n--BOUND--\r\n";

    /// The fields, the file, whether it ended, and its length as reckoned ahead.
    fn run(body: &[u8], step: usize) -> Result<(Fields, Vec<u8>, bool, Option<u64>), BodyError> {
        let mut head = Head::new(b"BOUND");
        let mut frames = body.chunks(step.max(1));
        let (fields, mut file) = loop {
            let frame = frames.next().ok_or(BodyError::Incomplete)?;
            if let Some(found) = head.feed(frame)? {
                break found;
            }
        };
        let length = file.length_within(body.len() as u64);
        let mut out = Vec::new();
        loop {
            while let Some(piece) = file.decode() {
                out.extend_from_slice(&piece);
            }
            match frames.next() {
                Some(frame) => file.feed(Bytes::copy_from_slice(frame)),
                None => return Ok((fields, out, file.ended(), length)),
            }
        }
    }

    #[test]
    fn fields_come_before_the_file_and_nothing_after_it() {
        let body = form(
            &[("Key", "a/${filename}"), ("x-amz-meta-ü", "")],
            b"data",
            END,
        );
        for step in 1..body.len() {
            let (fields, file, ended, length) = run(&body, step).expect("a form");
            assert_eq!(fields.get("key"), Some("a/${filename}"));
            assert_eq!(fields.get("x-amz-meta-ü"), Some(""));
            assert_eq!(fields.filename, "y z.txt");
            assert_eq!(
                (file.as_slice(), ended, length),
                (&b"data"[..], true, Some(4))
            );
        }
        let more = "\r\n--BOUND\r\nContent-Disposition: form-data; name=\"submit\"\r\n\r\nGo\r\n--BOUND--\r\n";
        let body = form(&[("key", "k")], b"data", more);
        let (fields, file, ended, length) = run(&body, 7).expect("a form");
        assert_eq!((file.as_slice(), ended), (&b"data"[..], true));
        assert!(fields.get("submit").is_none());
        assert_ne!(length, Some(4));
    }

    #[test]
    fn a_file_that_does_not_end_is_told() {
        let body = form(&[], b"data\r\n--BOUN", "");
        for step in 1..body.len() {
            let (_, file, ended, _) = run(&body, step).expect("a beginning");
            assert!(!ended && file.len() <= b"data".len(), "{file:?}");
        }
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let long = "x".repeat(limits::FORM_FIELDS_BYTES_MAX + 1);
        let many: Vec<(&str, &str)> = vec![("a", "b"); limits::FORM_FIELDS_MAX + 1];
        for (body, expected) in [
            (b"--BOUND--\r\n".to_vec(), "no file"),
            (b"--BOUNDX\r\n".to_vec(), "end its line"),
            (b"--BOUND\r\n\r\nx".to_vec(), "no content disposition"),
            (
                b"--BOUND\r\nContent-Disposition: attachment; name=a\r\n\r\n".to_vec(),
                "no form data",
            ),
            (
                b"--BOUND\r\nContent-Disposition: form-data\r\n\r\n".to_vec(),
                "no name",
            ),
            (form(&[("a", &long)], b"", END), "too large"),
            (form(&many, b"", END), "too large"),
            (vec![b'x'; limits::FORM_FIELDS_BYTES_MAX + 1], "too large"),
        ] {
            let error = run(&body, 1000).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}: {expected}");
        }
    }

    #[test]
    fn boundaries_are_announced() {
        let boundary = |kind: &'static str| {
            let kind = HeaderValue::from_static(kind);
            boundary(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]))
        };
        let good = Some(Ok(b"x y".to_vec()));
        assert_eq!(boundary("multipart/form-data; boundary=\"x y\""), good);
        assert_eq!(
            boundary("Multipart/Form-Data;charset=utf-8; Boundary=x y"),
            good
        );
        assert!(boundary("text/plain; boundary=x").is_none());
        assert!(boundary("multipart/form-data").expect("a form").is_err());
        assert!(
            boundary("multipart/form-data; boundary=")
                .expect("a form")
                .is_err()
        );
    }

    #[test]
    fn names_are_unquoted_as_browsers_quote_them() {
        let seen = |value: &str| {
            let line = format!("Content-Disposition: form-data; {value}");
            disposition(line.as_bytes()).expect("fine")
        };
        let names = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(seen("name=a; filename=b"), names("a", "b"));
        assert_eq!(seen(r#"filename="b;c"; name="A""#), names("a", "b;c"));
        assert_eq!(
            seen(r#"name="a"; filename="C:\d\e \"f%22.txt""#),
            names("a", "e \"f\".txt")
        );
    }

    proptest! {
        /// Files of bytes that look like boundaries, in frames of any size.
        #[test]
        fn any_file_comes_out_as_it_went_in(
            file in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'B'), Just(b'O'), any::<u8>()], 0..400,
            ),
            step in 1usize..60,
        ) {
            prop_assume!(memmem::find(&file, b"\r\n--BOUND").is_none());
            let body = form(&[("key", "k")], &file, END);
            let (_, seen, ended, length) = run(&body, step).unwrap();
            prop_assert_eq!(length, Some(file.len() as u64));
            prop_assert_eq!(seen, file);
            prop_assert!(ended);
        }

        #[test]
        fn noise_is_an_error_or_no_form(noise: Vec<u8>, step in 1usize..50) {
            prop_assert!(run(&noise, step).is_err());
        }
    }
}
