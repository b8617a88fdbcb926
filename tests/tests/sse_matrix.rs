//! Every mode of encryption, under every verb, in every state of its key: what S3 answers, and nothing else.

use strongroom_tests::client::{Client, xml_values};
use strongroom_tests::data::Pattern;
use strongroom_tests::sse::{
    BUCKET_KEY, CONTEXT, COPY_SOURCE_CUSTOMER, CUSTOMER, Headers, KEY_ID, METHOD, checked, context,
    customer, headers, outcome, send,
};
use strongroom_tests::{Config, Server, cli, sigv4};

const BUCKET: &str = "matrix";
const DEFAULT_KEY: &str = "strongroom-default";
const OURS: [u8; 32] = [0x41; 32];
const THEIRS: [u8; 32] = [0x42; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    S3,
    Kms,
    KmsContext,
    KmsBucketKey,
    Customer,
}

const MODES: [Mode; 5] = [
    Mode::S3,
    Mode::Kms,
    Mode::KmsContext,
    Mode::KmsBucketKey,
    Mode::Customer,
];

impl Mode {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// The key of the key service, where there is one.
    fn key(self) -> Option<&'static str> {
        match self {
            Mode::S3 => Some(DEFAULT_KEY),
            Mode::Kms => Some("key-plain"),
            Mode::KmsContext => Some("key-context"),
            Mode::KmsBucketKey => Some("key-bucket"),
            Mode::Customer => None,
        }
    }

    /// What a write in this mode asks for.
    fn of_write(self) -> Headers {
        let kms = |id: &str| headers(&[(METHOD, "aws:kms"), (KEY_ID, id)]);
        let with = |mut list: Headers, name: &str, value: String| {
            list.push((name.to_owned(), value));
            list
        };
        match self {
            Mode::S3 => headers(&[(METHOD, "AES256")]),
            Mode::Kms => kms("arn:aws:kms:us-east-1:000000000000:key/key-plain"),
            Mode::KmsContext => with(
                kms("alias/key-context"),
                CONTEXT,
                context(r#"{"department":"10103.0","matrix":"mine"}"#),
            ),
            Mode::KmsBucketKey => with(kms("key-bucket"), BUCKET_KEY, "true".into()),
            Mode::Customer => customer(CUSTOMER, &OURS),
        }
    }

    /// What its reads and parts bring, with the customer's key in this state.
    fn of_access(self, prefix: &str, state: State) -> Headers {
        match (self, state) {
            (Mode::Customer, State::Missing) => Vec::new(),
            (Mode::Customer, State::Wrong) => customer(prefix, &THEIRS),
            (Mode::Customer, _) => customer(prefix, &OURS),
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Right,
    /// Another customer's key.
    Wrong,
    /// No customer's key.
    Missing,
    Disabled,
    Pending,
    Sealed,
    Deleted,
}

const STATES: [State; 7] = [
    State::Right,
    State::Wrong,
    State::Missing,
    State::Disabled,
    State::Pending,
    State::Sealed,
    State::Deleted,
];

impl State {
    /// The answer to whatever needs the key, if there is no using it.
    fn refusal(self, mode: Mode) -> Option<&'static str> {
        match (self, mode) {
            (State::Right, _) => None,
            (State::Wrong, Mode::Customer) => Some("403 AccessDenied"),
            (State::Missing, Mode::Customer) => Some("400 InvalidRequest"),
            // The states of the key service's keys are nothing to a customer's key, and the other way round.
            (State::Wrong | State::Missing, _) | (_, Mode::Customer) => None,
            (State::Disabled, _) => Some("400 KMS.DisabledException"),
            (State::Pending, _) => Some("400 KMS.KMSInvalidStateException"),
            (State::Sealed, _) => Some("503 ServiceUnavailable"),
            (State::Deleted, _) => Some("400 KMS.NotFoundException"),
        }
    }

    fn enter(self, server: &Server) {
        let run = |args: &[&str]| cli::succeed(&mut cli::on(server.data_dir(), args));
        for key in MODES.iter().filter_map(|mode| mode.key()) {
            match self {
                State::Disabled => run(&["key", "disable", key]),
                State::Pending => run(&["key", "delete", key, "--confirm", key, "--after", "30d"]),
                State::Deleted => run(&["key", "delete", key, "--confirm", key]),
                State::Right | State::Wrong | State::Missing | State::Sealed => String::new(),
            };
        }
        if self == State::Sealed {
            run(&["kms", "seal"]);
        }
    }

    fn leave(self, server: &Server) {
        let run = |args: &[&str]| cli::succeed(&mut cli::on(server.data_dir(), args));
        match self {
            State::Disabled | State::Pending => {
                for key in MODES.iter().filter_map(|mode| mode.key()) {
                    run(&["key", "enable", key]);
                }
            }
            State::Sealed => drop(run(&["kms", "unseal"])),
            State::Right | State::Wrong | State::Missing | State::Deleted => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Empty,
    /// In the index.
    Small,
    /// In segments.
    Large,
    Multipart,
}

const SHAPES: [Shape; 4] = [Shape::Empty, Shape::Small, Shape::Large, Shape::Multipart];
const PART: usize = 5 << 20;

impl Shape {
    fn content(self) -> Vec<u8> {
        let size = match self {
            Shape::Empty => 0,
            Shape::Small => 1000,
            Shape::Large => 300_000,
            Shape::Multipart => PART + 100_000,
        };
        Pattern::named(&format!("{self:?}")).bytes(size)
    }

    fn key(self, mode: Mode) -> String {
        format!("{}-{self:?}", mode.name())
    }
}

fn started(config: Config) -> Server {
    let server = config.start();
    for key in MODES.iter().filter_map(|mode| mode.key()) {
        if key != DEFAULT_KEY {
            cli::succeed(&mut cli::on(server.data_dir(), &["key", "create", key]));
        }
    }
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    server
}

fn begin(client: &mut Client, key: &str, more: &[(String, String)]) -> String {
    let begun = send(client, "POST", (BUCKET, key, "uploads="), more, b"").expect(200);
    sigv4::encode_query(&xml_values(&begun.text(), "UploadId").remove(0))
}

fn upload_part(
    client: &mut Client,
    key: &str,
    upload: &str,
    (number, body): (usize, &[u8]),
    more: &[(String, String)],
) -> String {
    let query = format!("partNumber={number}&uploadId={upload}");
    let part = send(client, "PUT", (BUCKET, key, &query), more, body).expect(200);
    part.head.header("etag").expect("an ETag").to_owned()
}

fn list(etags: &[String]) -> String {
    let parts: String = etags
        .iter()
        .enumerate()
        .map(|(i, etag)| {
            format!(
                "<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>",
                i + 1
            )
        })
        .collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
}

fn store(client: &mut Client, mode: Mode, shape: Shape, key: &str) {
    let (content, of_write) = (shape.content(), mode.of_write());
    if shape != Shape::Multipart {
        let put = send(client, "PUT", (BUCKET, key, ""), &of_write, &content);
        assert_eq!(outcome(&put), "200", "{mode:?} {shape:?}: {}", put.text());
        return;
    }
    let upload = begin(client, key, &of_write);
    let more = mode.of_access(CUSTOMER, State::Right);
    let etags = [&content[..PART], &content[PART..]];
    let etags: Vec<String> = etags
        .iter()
        .enumerate()
        .map(|(i, body)| upload_part(client, key, &upload, (i + 1, body), &more))
        .collect();
    let query = format!("uploadId={upload}");
    let done = send(
        client,
        "POST",
        (BUCKET, key, &query),
        &[],
        list(&etags).as_bytes(),
    );
    assert_eq!(outcome(&done), "200", "{mode:?}: {}", done.text());
}

fn with(mut headers: Headers, more: &[(&str, &str)]) -> Headers {
    let own = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
    headers.extend(more.iter().map(own));
    headers
}

/// What was seen that should not have been.
#[derive(Default)]
struct Report {
    wrong: Vec<String>,
    seen: usize,
}

impl Report {
    fn check(&mut self, what: String, seen: &str, expected: &str) {
        self.seen += 1;
        if seen != expected {
            self.wrong
                .push(format!("{what}: {seen} instead of {expected}"));
        }
    }
}

/// Mode × verb × state of the key × shape.
#[test]
fn every_verb_of_every_mode_in_every_state_of_its_key() {
    let server = started(Config::tls());
    let mut client = server.client();
    for mode in MODES {
        for shape in SHAPES {
            store(&mut client, mode, shape, &shape.key(mode));
        }
    }
    let mut report = Report::default();
    for state in STATES {
        // Uploads begin while the keys can be used, and go on when they cannot.
        let uploads: Vec<(Mode, String, String)> = MODES
            .iter()
            .map(|mode| {
                let key = format!("upload-{}-{state:?}", mode.name());
                let upload = begin(&mut client, &key, &mode.of_write());
                (*mode, key, upload)
            })
            .collect();
        let etags: Vec<String> = uploads
            .iter()
            .map(|(mode, key, upload)| {
                let more = mode.of_access(CUSTOMER, State::Right);
                upload_part(&mut client, key, upload, (1, b"a part"), &more)
            })
            .collect();
        state.enter(&server);
        for mode in MODES {
            for shape in SHAPES {
                reads(&mut client, &mut report, mode, shape, state);
            }
            writes(&mut client, &mut report, mode, state);
        }
        for ((mode, key, upload), etag) in uploads.iter().zip(&etags) {
            parts(&mut client, &mut report, (*mode, key, upload, etag), state);
        }
        without_keys(&mut client, &mut report, state);
        state.leave(&server);
    }
    assert!(
        report.wrong.is_empty(),
        "{} of {}:\n{}",
        report.wrong.len(),
        report.seen,
        report.wrong.join("\n")
    );
    assert!(report.seen > 1000, "{}", report.seen);
}

/// GET whole, in ranges and by part; HEAD; attributes; the source of a copy.
fn reads(client: &mut Client, report: &mut Report, mode: Mode, shape: Shape, state: State) {
    let key = shape.key(mode);
    let content = shape.content();
    let access = mode.of_access(CUSTOMER, state);
    let refusal = state.refusal(mode);
    let what = |verb: &str| format!("{verb} {mode:?} {shape:?} {state:?}");

    let got = send(client, "GET", (BUCKET, &key, ""), &access, b"");
    report.check(what("GET"), &outcome(&got), refusal.unwrap_or("200"));
    if refusal.is_none() {
        assert!(got.body == content, "{}", what("GET"));
    }
    let checked = with(access.clone(), &[("x-amz-checksum-mode", "ENABLED")]);
    let got = send(client, "GET", (BUCKET, &key, ""), &checked, b"");
    report.check(
        what("GET with checksum"),
        &outcome(&got),
        refusal.unwrap_or("200"),
    );

    if shape != Shape::Empty {
        let (from, to) = (content.len() / 3, content.len() - 10);
        let range = format!("bytes={from}-{to}");
        let ranged = with(access.clone(), &[("range", &range)]);
        let got = send(client, "GET", (BUCKET, &key, ""), &ranged, b"");
        report.check(
            what("GET of a range"),
            &outcome(&got),
            refusal.unwrap_or("206"),
        );
        if refusal.is_none() {
            assert!(got.body == content[from..=to], "{}", what("GET of a range"));
        }
        let got = send(client, "GET", (BUCKET, &key, "partNumber=1"), &access, b"");
        report.check(
            what("GET of a part"),
            &outcome(&got),
            refusal.unwrap_or("206"),
        );
    }

    // What only a customer's key protects is refused to HEAD too; what the key service holds is not needed for it.
    let by_customer = mode == Mode::Customer;
    let status = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    let head = send(client, "HEAD", (BUCKET, &key, ""), &access, b"");
    let expected = refusal.filter(|_| by_customer).map_or("200".into(), status);
    report.check(what("HEAD"), &outcome(&head), &expected);
    let head = send(client, "HEAD", (BUCKET, &key, ""), &checked, b"");
    let expected = match (refusal, state) {
        (Some(_), State::Sealed) | (None, _) => "200".into(),
        (Some(refusal), _) => status(refusal),
    };
    report.check(what("HEAD with checksum"), &outcome(&head), &expected);
    if head.status() == 200 {
        let shown = head.head.header("x-amz-checksum-crc64nvme").is_some();
        let expected = refusal.is_none() && !(by_customer && shape == Shape::Multipart);
        report.check(
            what("checksum of HEAD"),
            &shown.to_string(),
            &expected.to_string(),
        );
    }

    for (asked, needs_key) in [
        ("ETag,ObjectSize", by_customer),
        ("Checksum,ObjectParts", true),
    ] {
        let attributes = with(access.clone(), &[("x-amz-object-attributes", asked)]);
        let got = send(
            client,
            "GET",
            (BUCKET, &key, "attributes"),
            &attributes,
            b"",
        );
        let expected = refusal.filter(|_| needs_key).unwrap_or("200");
        report.check(what(asked), &outcome(&got), expected);
    }

    let from = format!("/{BUCKET}/{key}");
    let source = with(
        mode.of_access(COPY_SOURCE_CUSTOMER, state),
        &[("x-amz-copy-source", &from)],
    );
    let to_customer = [source.clone(), customer(CUSTOMER, &OURS)].concat();
    let copied = send(client, "PUT", (BUCKET, "copy", ""), &to_customer, b"");
    report.check(
        what("CopyObject from"),
        &outcome(&copied),
        refusal.unwrap_or("200"),
    );

    // Headers that belong to another mode.
    let unfit = match by_customer {
        true => headers(&[(METHOD, "AES256")]),
        false => customer(CUSTOMER, &OURS),
    };
    let got = send(client, "GET", (BUCKET, &key, ""), &unfit, b"");
    let expected = if by_customer {
        "400 InvalidArgument"
    } else {
        "400 InvalidRequest"
    };
    report.check(what("GET with unfit headers"), &outcome(&got), expected);
}

/// PUT, the target of a copy, and the beginning of an upload.
fn writes(client: &mut Client, report: &mut Report, mode: Mode, state: State) {
    // A customer's key is never wrong for a new object.
    let refusal = state.refusal(mode).filter(|_| mode != Mode::Customer);
    let expected = refusal.unwrap_or("200");
    let what = |verb: &str| format!("{verb} {mode:?} {state:?}");
    let of_write = mode.of_write();
    for shape in [Shape::Empty, Shape::Small, Shape::Large] {
        let put = send(
            client,
            "PUT",
            (BUCKET, "written", ""),
            &of_write,
            &shape.content(),
        );
        report.check(what("PUT"), &outcome(&put), expected);
    }
    let begun = send(
        client,
        "POST",
        (BUCKET, "begun", "uploads="),
        &of_write,
        b"",
    );
    report.check(what("CreateMultipartUpload"), &outcome(&begun), expected);
    if begun.status() == 200 {
        let id = xml_values(&begun.text(), "UploadId").remove(0);
        let query = format!("uploadId={}", sigv4::encode_query(&id));
        let gone = send(client, "DELETE", (BUCKET, "begun", &query), &[], b"");
        report.check(what("AbortMultipartUpload"), &outcome(&gone), "204");
    }
    let source = format!("/{BUCKET}/{}", Shape::Small.key(Mode::Customer));
    let copy = with(of_write, &[("x-amz-copy-source", &source)]);
    let copy = [copy, customer(COPY_SOURCE_CUSTOMER, &OURS)].concat();
    let copied = send(client, "PUT", (BUCKET, "written", ""), &copy, b"");
    report.check(what("CopyObject to"), &outcome(&copied), expected);
}

/// Parts of an upload that was begun before, their list, and its completion.
fn parts(
    client: &mut Client,
    report: &mut Report,
    (mode, key, upload, etag): (Mode, &str, &str, &str),
    state: State,
) {
    let what = |verb: &str| format!("{verb} {mode:?} {state:?}");
    let access = mode.of_access(CUSTOMER, state);
    // Of parts S3 says that they do not fit their upload.
    let refusal = match (mode, state) {
        (Mode::Customer, State::Wrong | State::Missing) => Some("400 InvalidRequest"),
        _ => state.refusal(mode),
    };
    let second = format!("partNumber=2&uploadId={upload}");
    let part = send(client, "PUT", (BUCKET, key, &second), &access, b"another");
    report.check(
        what("UploadPart"),
        &outcome(&part),
        refusal.unwrap_or("200"),
    );

    let source = format!("/{BUCKET}/{}", Shape::Small.key(Mode::Customer));
    let copy = with(access.clone(), &[("x-amz-copy-source", &source)]);
    let copy = [copy, customer(COPY_SOURCE_CUSTOMER, &OURS)].concat();
    let part = send(client, "PUT", (BUCKET, key, &second), &copy, b"");
    report.check(
        what("UploadPartCopy"),
        &outcome(&part),
        refusal.unwrap_or("200"),
    );

    let query = format!("uploadId={upload}");
    let listed = send(client, "GET", (BUCKET, key, &query), &access, b"");
    let expected = match (mode, state) {
        // Without a checksum to be shown no key is needed.
        (Mode::Customer, State::Missing) | (_, State::Sealed) => "200",
        _ => refusal.unwrap_or("200"),
    };
    report.check(what("ListParts"), &outcome(&listed), expected);

    let expected = match (mode, state) {
        (Mode::Customer, State::Missing) => "200",
        _ => refusal.unwrap_or("200"),
    };
    let body = list(&[etag.to_owned()]);
    let done = send(
        client,
        "POST",
        (BUCKET, key, &query),
        &access,
        body.as_bytes(),
    );
    report.check(what("CompleteMultipartUpload"), &outcome(&done), expected);
}

/// What needs no key goes on whatever became of them.
fn without_keys(client: &mut Client, report: &mut Report, state: State) {
    let listed = client.list(BUCKET).expect("a listing");
    assert!(listed.len() >= MODES.len() * SHAPES.len(), "{state:?}");
    let put = send(
        client,
        "PUT",
        (BUCKET, "to-delete", ""),
        &customer(CUSTOMER, &OURS),
        b"x",
    );
    report.check(format!("PUT {state:?}"), &outcome(&put), "200");
    for key in ["to-delete", "copy"] {
        let gone = send(client, "DELETE", (BUCKET, key, ""), &[], b"");
        report.check(format!("DELETE {state:?}"), &outcome(&gone), "204");
    }
    let shown = send(client, "GET", (BUCKET, "", "encryption"), &[], b"");
    report.check(
        format!("GetBucketEncryption {state:?}"),
        &outcome(&shown),
        "200",
    );
}

/// Source mode × target mode × shape: each copy reads back, in the target's mode, with nothing of the source's.
#[test]
fn copies_take_the_mode_of_their_target_and_read_back() {
    let server = started(Config::tls());
    let mut client = server.client();
    for from in MODES {
        for shape in SHAPES {
            let source = shape.key(from);
            store(&mut client, from, shape, &source);
            for to in MODES {
                let copy = format!("{source}-to-{}", to.name());
                let named = format!("/{BUCKET}/{source}");
                let of_copy = with(to.of_write(), &[("x-amz-copy-source", &named)]);
                let of_copy =
                    [of_copy, from.of_access(COPY_SOURCE_CUSTOMER, State::Right)].concat();
                let copied = send(&mut client, "PUT", (BUCKET, &copy, ""), &of_copy, b"");
                let what = format!("{from:?} {shape:?} to {to:?}");
                assert_eq!(outcome(&copied), "200", "{what}: {}", copied.text());
                let access = to.of_access(CUSTOMER, State::Right);
                let got = send(&mut client, "GET", (BUCKET, &copy, ""), &access, b"");
                assert_eq!(outcome(&got), "200", "{what}: {}", got.text());
                assert!(got.body == shape.content(), "{what}");
                assert_mode(&got.head.headers, to, &what);
            }
            // A target that says nothing gets the bucket's mode, whatever the source was.
            let named = format!("/{BUCKET}/{source}");
            let bare = with(
                from.of_access(COPY_SOURCE_CUSTOMER, State::Right),
                &[("x-amz-copy-source", &named)],
            );
            send(&mut client, "PUT", (BUCKET, "bare", ""), &bare, b"").expect(200);
            let got = send(&mut client, "GET", (BUCKET, "bare", ""), &[], b"").expect(200);
            assert!(got.body == shape.content());
            assert_mode(&got.head.headers, Mode::S3, &format!("{from:?} to nothing"));
        }
    }
}

fn assert_mode(seen: &[(String, String)], mode: Mode, what: &str) {
    let value = |name: &str| {
        let found = seen.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    };
    let given = mode.of_write();
    let given = |name: &str| {
        let found = given.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    };
    for name in [METHOD, KEY_ID, BUCKET_KEY] {
        assert_eq!(value(name), given(name), "{what}: {name}");
    }
    for what_of in ["algorithm", "key-md5"] {
        let name = format!("{CUSTOMER}-{what_of}");
        assert_eq!(value(&name), given(&name), "{what}: {name}");
    }
    // A read shows neither the context nor, ever, a key.
    assert_eq!(value(CONTEXT), None, "{what}");
    assert_eq!(value(&format!("{CUSTOMER}-key")), None, "{what}");
}

/// Elsewhere an empty object opened under any key, and its attributes under none.
#[test]
fn zero_byte_objects_and_attributes_check_the_customers_key() {
    let server = started(Config::tls());
    let mut client = server.client();
    let key = Shape::Empty.key(Mode::Customer);
    store(&mut client, Mode::Customer, Shape::Empty, &key);
    for (state, expected) in [
        (State::Right, "200"),
        (State::Wrong, "403 AccessDenied"),
        (State::Missing, "400 InvalidRequest"),
    ] {
        let access = Mode::Customer.of_access(CUSTOMER, state);
        let got = send(&mut client, "GET", (BUCKET, &key, ""), &access, b"");
        assert_eq!(outcome(&got), expected);
        let head = send(&mut client, "HEAD", (BUCKET, &key, ""), &access, b"");
        assert_eq!(outcome(&head), expected[..3]);
        let asked = with(access, &[("x-amz-object-attributes", "ETag")]);
        let got = send(
            &mut client,
            "GET",
            (BUCKET, &key, "attributes"),
            &asked,
            b"",
        );
        assert_eq!(outcome(&got), expected);
    }
}

/// Elsewhere such a part was stored in clear.
#[test]
fn a_part_under_a_customers_key_needs_an_upload_under_it() {
    let server = started(Config::tls());
    let mut client = server.client();
    for mode in MODES {
        let key = format!("upload-{}", mode.name());
        let upload = begin(&mut client, &key, &mode.of_write());
        let query = format!("partNumber=1&uploadId={upload}");
        for given in [
            customer(CUSTOMER, &OURS),
            customer(CUSTOMER, &THEIRS),
            Vec::new(),
        ] {
            let wanted = match mode {
                Mode::Customer => customer(CUSTOMER, &OURS),
                _ => Vec::new(),
            };
            let fits = given == wanted;
            let expected = if fits { "200" } else { "400 InvalidRequest" };
            let part = send(&mut client, "PUT", (BUCKET, &key, &query), &given, b"part");
            assert_eq!(outcome(&part), expected, "{mode:?} {given:?}");
        }
    }
    // Headers that say again what the upload said are no fault, and others are.
    let upload = begin(&mut client, "again", &Mode::KmsContext.of_write());
    let query = format!("partNumber=1&uploadId={upload}");
    let same = Mode::KmsContext.of_write();
    let part = send(
        &mut client,
        "PUT",
        (BUCKET, "again", &query),
        &same,
        b"part",
    );
    assert_eq!(outcome(&part), "200", "{}", part.text());
    let etag = part.head.header("etag").expect("an ETag").to_owned();
    let other = Mode::Kms.of_write();
    let refused = send(
        &mut client,
        "PUT",
        (BUCKET, "again", &query),
        &other,
        b"part",
    );
    assert_eq!(outcome(&refused), "400 InvalidArgument");
    let query = format!("uploadId={upload}");
    let done = send(
        &mut client,
        "POST",
        (BUCKET, "again", &query),
        &same,
        list(&[etag]).as_bytes(),
    );
    assert_eq!(outcome(&done), "200", "{}", done.text());
}

#[test]
fn customers_keys_come_over_tls_alone() {
    let put = |server: &Server, more: &[(&str, &str)]| {
        let mut client = server.client();
        client.create_bucket(BUCKET).expect("an answer").expect(200);
        let headers = with(customer(CUSTOMER, &OURS), more);
        let put = send(&mut client, "PUT", (BUCKET, "key", ""), &headers, b"data");
        let got = send(&mut client, "GET", (BUCKET, "key", ""), &headers, b"");
        format!("{} {}", outcome(&put), got.status())
    };
    let forwarded = [("x-forwarded-proto", "https")];
    let refused = "400 InvalidRequest 404";
    assert_eq!(put(&Config::http().start(), &[]), refused);
    assert_eq!(put(&Config::http().start(), &forwarded), refused);
    assert_eq!(put(&Config::tls().start(), &[]), "200 200");
    let allowed = Config::http().args(["--allow-sse-c-without-tls"]).start();
    assert_eq!(put(&allowed, &[]), "200 200");
    let proxied = |networks: &str| {
        let config = Config::http().args(["--trusted-proxies", networks]);
        config.start()
    };
    assert_eq!(
        put(&proxied("10.0.0.0/8,127.0.0.0/8"), &forwarded),
        "200 200"
    );
    assert_eq!(put(&proxied("127.0.0.1"), &[]), refused);
    assert_eq!(put(&proxied("10.0.0.0/8"), &forwarded), refused);
}

#[test]
fn a_customers_key_is_changed_in_place() {
    let server = started(Config::tls());
    let mut client = server.client();
    for shape in SHAPES {
        let key = shape.key(Mode::Customer);
        store(&mut client, Mode::Customer, shape, &key);
        let (ours, theirs) = (customer(CUSTOMER, &OURS), customer(CUSTOMER, &THEIRS));
        let before = send(&mut client, "HEAD", (BUCKET, &key, ""), &ours, b"").expect(200);
        let named = format!("/{BUCKET}/{key}");
        let change = [customer(COPY_SOURCE_CUSTOMER, &OURS), theirs.clone()].concat();
        let change = with(change, &[("x-amz-copy-source", &named)]);
        send(&mut client, "PUT", (BUCKET, &key, ""), &change, b"").expect(200);
        let old = send(&mut client, "GET", (BUCKET, &key, ""), &ours, b"");
        assert_eq!(outcome(&old), "403 AccessDenied", "{shape:?}");
        let new = send(&mut client, "GET", (BUCKET, &key, ""), &theirs, b"").expect(200);
        assert!(new.body == shape.content(), "{shape:?}");
        for name in ["etag", "last-modified"] {
            assert_eq!(new.head.header(name), before.head.header(name), "{shape:?}");
        }
        // The old key changes nothing any more.
        let again = send(&mut client, "PUT", (BUCKET, &key, ""), &change, b"");
        assert_eq!(outcome(&again), "403 AccessDenied", "{shape:?}");
    }
}

/// The object moves to another key, and its data, ETag and time do not; afterwards it outlives its old key.
#[test]
fn an_object_moves_to_another_key_and_outlives_its_old_one() {
    let mut server = started(Config::tls());
    let mut client = server.client();
    cli::succeed(&mut cli::on(server.data_dir(), &["key", "create", "next"]));
    let body = "<ObjectEncryption><SSE-KMS><KMSKeyArn>arn:aws:kms:us-east-1:000000000000:key/next</KMSKeyArn></SSE-KMS></ObjectEncryption>";
    let vouched = checked(body);
    let sources = [Mode::S3, Mode::Kms, Mode::KmsContext, Mode::KmsBucketKey];
    for mode in sources {
        for shape in SHAPES {
            let key = shape.key(mode);
            store(&mut client, mode, shape, &key);
            let before = send(&mut client, "HEAD", (BUCKET, &key, ""), &[], b"").expect(200);
            let what = format!("{mode:?} {shape:?}");
            let bare = send(
                &mut client,
                "PUT",
                (BUCKET, &key, "encryption"),
                &[],
                body.as_bytes(),
            );
            assert_eq!(outcome(&bare), "400 InvalidRequest", "{what}: unchecked");
            let moved = send(
                &mut client,
                "PUT",
                (BUCKET, &key, "encryption"),
                &vouched,
                body.as_bytes(),
            );
            assert_eq!(outcome(&moved), "200", "{what}: {}", moved.text());
            let after = send(&mut client, "GET", (BUCKET, &key, ""), &[], b"").expect(200);
            assert!(after.body == shape.content(), "{what}");
            for name in ["etag", "last-modified", "content-type", "content-length"] {
                assert_eq!(after.head.header(name), before.head.header(name), "{what}");
            }
            assert_eq!(after.head.header(METHOD), Some("aws:kms"), "{what}");
            let shown = after.head.header(KEY_ID);
            assert_eq!(
                shown,
                Some("arn:aws:kms:us-east-1:000000000000:key/next"),
                "{what}"
            );
            assert_eq!(after.head.header(BUCKET_KEY), None, "{what}");
        }
    }
    for key in sources.iter().filter_map(|mode| mode.key()) {
        let delete = ["key", "delete", key, "--confirm", key];
        cli::succeed(&mut cli::on(server.data_dir(), &delete));
    }
    let readable = |client: &mut Client| {
        for mode in sources {
            for shape in SHAPES {
                let got = send(client, "GET", (BUCKET, &shape.key(mode), ""), &[], b"").expect(200);
                assert!(got.body == shape.content(), "{mode:?} {shape:?}");
            }
        }
    };
    readable(&mut client);
    server.restart();
    readable(&mut server.client());
    // What cannot be moved.
    let mut client = server.client();
    let key = Shape::Small.key(Mode::Customer);
    store(&mut client, Mode::Customer, Shape::Small, &key);
    for (key, expected) in [
        (key.as_str(), "400 InvalidRequest"),
        ("absent", "404 NoSuchKey"),
    ] {
        let refused = send(
            &mut client,
            "PUT",
            (BUCKET, key, "encryption"),
            &vouched,
            body.as_bytes(),
        );
        assert_eq!(outcome(&refused), expected);
    }
    let key = Shape::Small.key(Mode::S3);
    let unknown = body.replace("key/next", "key/nobody");
    for (body, expected) in [
        (unknown.as_str(), "400 KMS.NotFoundException"),
        (
            "<ObjectEncryption><SSE-S3/></ObjectEncryption>",
            "400 InvalidRequest",
        ),
        (
            "<ObjectEncryption><SSE-KMS><KMSKeyArn>next</KMSKeyArn></SSE-KMS></ObjectEncryption>",
            "400 InvalidRequest",
        ),
        ("<nonsense/>", "400 MalformedXML"),
    ] {
        let refused = send(
            &mut client,
            "PUT",
            (BUCKET, &key, "encryption"),
            &checked(body),
            body.as_bytes(),
        );
        assert_eq!(outcome(&refused), expected, "{body}");
    }
    let got = send(&mut client, "GET", (BUCKET, &key, ""), &[], b"").expect(200);
    assert!(got.body == Shape::Small.content(), "the object is no XML");
}

/// Once its key is gone a download breaks off, and an upload that began before is not acknowledged.
#[test]
fn what_is_under_way_ends_with_its_key() {
    use std::io::{self, Read};
    let server = started(Config::tls());
    let mut client = server.client();
    let disable = || {
        cli::succeed(&mut cli::on(
            server.data_dir(),
            &["key", "disable", "key-plain"],
        ))
    };

    struct Slow<'a, F: FnMut()> {
        left: usize,
        half: usize,
        at_half: F,
        content: &'a [u8],
    }
    impl<F: FnMut()> Read for Slow<'_, F> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let done = self.content.len() - self.left;
            let n = out.len().min(self.left).min(64 << 10);
            out[..n].copy_from_slice(&self.content[done..done + n]);
            if done < self.half && done + n >= self.half {
                (self.at_half)();
            }
            self.left -= n;
            Ok(n)
        }
    }
    let content = Pattern::named("under way").bytes(4 << 20);
    let of_write = Mode::Kms.of_write();
    let of_write = strongroom_tests::sse::borrowed(&of_write);
    let request = strongroom_tests::client::Request {
        method: "PUT",
        bucket: BUCKET,
        key: "under-way",
        query: "",
        headers: &of_write,
    };
    let mut slow = Slow {
        left: content.len(),
        half: content.len() / 2,
        at_half: || drop(disable()),
        content: &content,
    };
    let put = client
        .stream(&request, content.len() as u64, &mut slow)
        .expect("an answer");
    assert_eq!(outcome(&put), "400 KMS.DisabledException");
    cli::succeed(&mut cli::on(
        server.data_dir(),
        &["key", "enable", "key-plain"],
    ));
    let absent = send(
        &mut server.client(),
        "GET",
        (BUCKET, "under-way", ""),
        &[],
        b"",
    );
    assert_eq!(outcome(&absent), "404 NoSuchKey");

    let big = Pattern::named("big").bytes(64 << 20);
    let mut client = server.client();
    let of_write = Mode::Kms.of_write();
    send(&mut client, "PUT", (BUCKET, "big", ""), &of_write, &big).expect(200);
    let get = strongroom_tests::client::Request {
        method: "GET",
        bucket: BUCKET,
        key: "big",
        ..Default::default()
    };
    let (mut seen, mut disabled) = (0, false);
    let broken = client.fetch(&get, |piece| {
        assert!(big[seen..seen + piece.len()] == *piece);
        seen += piece.len();
        if !disabled {
            disabled = true;
            disable();
        }
    });
    assert!(broken.is_err() && seen < big.len(), "{seen} bytes came");
}
