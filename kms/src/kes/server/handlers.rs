//! What each route of the KES API does.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Client, KesServer, Loaded, Log, ROUTES, RequestBody, ServerBody, ServerResponse, failure,
};
use crate::KeyState;
use crate::ciphertext::Algorithm;
use crate::error::{Caller, Environment, Error, KeyProblem};
use crate::kes::proto::{self, Base64};
use crate::kes::stored::StoredKey;
use crate::keystore::Held;
use crate::limits::KEY_NAME_BYTES_MAX;
use crate::name;
use crate::secret::{DataKey, Secret32};
use crate::time::Timestamp;
use crate::time::now_ms;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handler {
    Version,
    Ready,
    Status,
    Metrics,
    Api,
    Create,
    Import,
    Describe,
    List,
    Delete,
    Generate,
    Encrypt,
    Decrypt,
    Hmac,
    DescribePolicy,
    ReadPolicy,
    ListPolicies,
    DescribeIdentity,
    ListIdentities,
    DescribeSelf,
    ErrorLog,
    AuditLog,
}

/// Names in one answer: as many as a client that reads 1 MiB can take.
const LIST_NAMES_MAX: usize = 10_000;

/// An answer that is not a success: status and message.
type Refusal = (u16, String);

pub(super) fn handle(
    server: &KesServer,
    loaded: &Loaded,
    handler: Handler,
    argument: &str,
    client: &Client,
    body: RequestBody<'_>,
) -> ServerResponse {
    let call = Call {
        server,
        loaded,
        argument,
        client,
        body,
    };
    let answer = match handler {
        Handler::Version => Ok(json_answer(&proto::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("STRONGROOM_COMMIT")
                .unwrap_or_default()
                .to_owned(),
        })),
        Handler::Ready => call.ready(),
        Handler::Status => Ok(call.status()),
        Handler::Metrics => Ok(call.metrics()),
        Handler::Api => Ok(call.api()),
        Handler::Create => call.create(),
        Handler::Import => call.import(),
        Handler::Describe => call.describe(),
        Handler::List => call.list(),
        Handler::Delete => call.delete(),
        Handler::Generate => call.generate(),
        Handler::Encrypt => call.encrypt(),
        Handler::Decrypt => call.decrypt(),
        Handler::Hmac => call.hmac(),
        Handler::DescribePolicy => call.describe_policy(),
        Handler::ReadPolicy => call.read_policy(),
        Handler::ListPolicies => call.list_policies(),
        Handler::DescribeIdentity => call.describe_identity(),
        Handler::ListIdentities => call.list_identities(),
        Handler::DescribeSelf => call.describe_self(),
        Handler::ErrorLog => Ok(call.log(Log::Error)),
        Handler::AuditLog => Ok(call.log(Log::Audit)),
    };
    answer.unwrap_or_else(|(status, message)| failure(status, &message))
}

struct Call<'a> {
    server: &'a KesServer,
    loaded: &'a Loaded,
    argument: &'a str,
    client: &'a Client,
    body: RequestBody<'a>,
}

type Answer = Result<ServerResponse, Refusal>;

impl Call<'_> {
    fn ready(&self) -> Answer {
        if self.server.kms.outage().is_some() {
            return refuse(504, "key store is not reachable");
        }
        Ok(empty())
    }

    fn status(&self) -> ServerResponse {
        let away = self.server.kms.outage().is_some();
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let memory = super::metrics::memory();
        json_answer(&proto::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: go_arch().to_owned(),
            uptime: self.server.started.elapsed().as_secs(),
            num_cpu: cpus,
            num_cpu_used: cpus,
            mem_heap_used: memory.heap,
            mem_stack_used: memory.stack,
            // The keystore is in memory.
            keystore_latency: (!away).then_some(1),
            keystore_unreachable: away,
        })
    }

    fn metrics(&self) -> ServerResponse {
        let text = self.server.metrics.render(self.server.started.elapsed());
        let mut answer = answer(200, Zeroizing::new(text.into_bytes()));
        answer
            .headers
            .push(("content-type", super::metrics::CONTENT_TYPE.to_owned()));
        answer
    }

    fn api(&self) -> ServerResponse {
        let routes: Vec<Value> = ROUTES
            .iter()
            .map(|route| {
                let timeout = self
                    .server
                    .route_config(route)
                    .timeout
                    .unwrap_or(route.timeout);
                json!({
                    "method": route.method,
                    "path": route.path,
                    "max_body": route.body_bytes_max,
                    "timeout": timeout.as_secs(),
                })
            })
            .collect();
        json_answer(&routes)
    }

    fn create(&self) -> Answer {
        self.check_key_name()?;
        let keystore = &self.server.kms.keystore;
        let made = keystore.create(self.argument, now_ms(), &self.client.identity);
        self.changed(made, "failed to create key")
    }

    fn import(&self) -> Answer {
        self.check_key_name()?;
        let body: proto::ImportRequest = self
            .parsed()
            .ok_or((400, "invalid import key request body".to_owned()))?;
        let algorithm = match body.cipher.as_str() {
            "AES256" | "AES256-GCM_SHA256" => Algorithm::Aes256,
            "ChaCha20" | "XCHACHA20-POLY1305" => Algorithm::ChaCha20,
            other => return refuse(406, &format!("algorithm '{other}' is not supported")),
        };
        let Some(key) = Secret32::from_slice(&body.key.0) else {
            return refuse(406, &format!("invalid key size for '{algorithm}'"));
        };
        let stored = StoredKey {
            key,
            algorithm,
            hmac: Some(Secret32::random()),
            created_at: Timestamp::from_millis(now_ms()),
            created_by: self.client.identity.clone(),
        };
        let made = self.server.kms.keystore.import(self.argument, stored);
        self.changed(made, "failed to create key")
    }

    fn describe(&self) -> Answer {
        self.check_key_name()?;
        let described = self.server.kms.keystore.creation(self.argument);
        let (info, created_at, created_by) =
            described.map_err(|error| self.key_refusal(&error, "failed to read key"))?;
        if info.state == KeyState::Destroyed {
            return refuse(404, proto::KEY_NOT_FOUND);
        }
        Ok(json_answer(&proto::DescribeResponse {
            name: info.name,
            algorithm: info.algorithm.as_str().to_owned(),
            created_at: created_at.to_string(),
            created_by,
        }))
    }

    fn list(&self) -> Answer {
        let prefix = self.checked_pattern()?;
        // One star is everything; behind a prefix it is taken by the letter, and no name has it.
        let prefix = if prefix == "*" { "" } else { prefix };
        let keys = self.server.kms.keystore.list(prefix);
        let keys = keys.map_err(|error| self.key_refusal(&error, "failed to list keys"))?;
        let mut names: Vec<String> = keys.into_iter().map(|key| key.name).collect();
        let continue_at = names.get(LIST_NAMES_MAX).cloned().unwrap_or_default();
        names.truncate(LIST_NAMES_MAX);
        Ok(json_answer(&proto::ListResponse { names, continue_at }))
    }

    fn delete(&self) -> Answer {
        self.check_key_name()?;
        let deleted = self
            .server
            .kms
            .delete_key(self.argument, crate::Deletion::Now);
        self.changed(deleted, "failed to delete key")
    }

    fn generate(&self) -> Answer {
        self.check_key_name()?;
        // The only body that may be left out.
        let request = match self.body {
            RequestBody::Whole([]) => proto::GenerateRequest::default(),
            _ => self.parsed().ok_or_else(invalid_body)?,
        };
        let made = self.with_key("failed to read key", |held| {
            let plain = DataKey::random();
            let (sealed, _) = held.seal(plain.expose(), &request.context.0);
            Ok((plain, sealed))
        });
        let (plain, sealed) = made?;
        Ok(json_answer(&proto::GenerateResponse {
            plaintext: Base64::new(plain.expose()),
            ciphertext: Base64::new(&sealed),
        }))
    }

    fn encrypt(&self) -> Answer {
        self.check_key_name()?;
        let request: proto::EncryptRequest = self.parsed().ok_or_else(invalid_body)?;
        let (sealed, _) = self.with_key("failed to read key", |held| {
            Ok(held.seal(&request.plaintext.0, &request.context.0))
        })?;
        Ok(json_answer(&proto::EncryptResponse {
            ciphertext: Base64::new(&sealed),
        }))
    }

    fn decrypt(&self) -> Answer {
        self.check_key_name()?;
        let request: proto::DecryptRequest = self.parsed().ok_or_else(invalid_body)?;
        let (plain, _) = self.with_key("failed to read key", |held| {
            held.open(0, &request.ciphertext.0, &request.context.0)
        })?;
        Ok(json_answer(&proto::DecryptResponse {
            plaintext: Base64(plain),
        }))
    }

    fn hmac(&self) -> Answer {
        self.check_key_name()?;
        let request: proto::HmacRequest = self.parsed().ok_or_else(invalid_body)?;
        let tag = self.with_key("failed to read key", |held| {
            Ok(held.hmac(&request.message.0))
        })?;
        match tag {
            Some(tag) => Ok(json_answer(&proto::HmacResponse {
                hmac: Base64::new(tag.expose()),
            })),
            None => refuse(409, "key does not support HMAC"),
        }
    }

    fn describe_policy(&self) -> Answer {
        self.check_policy_name()?;
        if !self.loaded.config.policies.contains_key(self.argument) {
            return refuse(404, "policy does not exist");
        }
        Ok(json_answer(&Described {
            name: Some(self.argument),
            created_by: Some(self.loaded.config.admin.as_str()),
            ..self.described()
        }))
    }

    fn read_policy(&self) -> Answer {
        self.check_policy_name()?;
        let Some(policy) = self.loaded.config.policies.get(self.argument) else {
            return refuse(404, "policy does not exist");
        };
        Ok(json_answer(&Described {
            name: Some(self.argument),
            allow: patterns(&policy.allow),
            deny: patterns(&policy.deny),
            created_by: Some(self.loaded.config.admin.as_str()),
            ..self.described()
        }))
    }

    fn list_policies(&self) -> Answer {
        let names = self.matching(self.loaded.config.policies.keys().map(String::as_str))?;
        Ok(json_answer(&Listed {
            names: Some(names),
            identities: None,
            continue_at: "",
        }))
    }

    fn describe_identity(&self) -> Answer {
        if !is_name(self.argument) {
            let message = format!(
                "identity '{}' is empty, too long or contains invalid characters",
                self.argument
            );
            return refuse(400, &message);
        }
        let config = &self.loaded.config;
        if config.admin.is(self.argument) {
            return Ok(json_answer(&Described {
                admin: Some(true),
                ..self.described()
            }));
        }
        let Some((policy, _)) = self.policy_of(self.argument) else {
            return refuse(404, "identity does not exist");
        };
        Ok(json_answer(&Described {
            policy: Some(policy),
            created_by: Some(config.admin.as_str()),
            ..self.described()
        }))
    }

    fn list_identities(&self) -> Answer {
        let config = &self.loaded.config;
        let mut all: Vec<&str> = config
            .policies
            .values()
            .flat_map(|policy| policy.identities.iter().map(String::as_str))
            .chain(config.admin.is_somebody().then_some(config.admin.as_str()))
            .collect();
        all.sort_unstable();
        let identities = self.matching(all.into_iter())?;
        Ok(json_answer(&Listed {
            names: None,
            identities: Some(identities),
            continue_at: "",
        }))
    }

    /// A caller with a policy is told that it does not exist: so does KES, and clients know it.
    fn describe_self(&self) -> Answer {
        if !self.client.is_admin {
            return refuse(404, "identity does not exist");
        }
        Ok(json_answer(&Described {
            identity: Some(&self.client.identity),
            admin: Some(true),
            ..self.described()
        }))
    }

    fn log(&self, log: Log) -> ServerResponse {
        ServerResponse {
            status: 200,
            headers: vec![("content-type", "application/x-ndjson".to_owned())],
            body: ServerBody::Stream(self.server.subscribe(log)),
        }
    }

    // What the handlers share.

    fn parsed<T: for<'de> serde::Deserialize<'de>>(&self) -> Option<T> {
        match self.body {
            RequestBody::Whole(body) => proto::decode(body),
            RequestBody::TooLong => None,
        }
    }

    fn with_key<T>(
        &self,
        otherwise: &str,
        with: impl FnOnce(Held<'_>) -> Result<T, Error>,
    ) -> Result<T, Refusal> {
        self.server
            .kms
            .keystore
            .with_key(self.argument, with)
            .map_err(|error| self.key_refusal(&error, otherwise))
    }

    fn changed<T>(&self, outcome: Result<T, Error>, otherwise: &str) -> Answer {
        match outcome {
            Ok(_) => Ok(empty()),
            Err(error) => Err(self.key_refusal(&error, otherwise)),
        }
    }

    /// An error of the keystore in KES's words; what KES has no words for is `otherwise`.
    fn key_refusal(&self, error: &Error, otherwise: &str) -> Refusal {
        match error {
            Error::Caller(Caller::KeyExists(_)) => (400, proto::KEY_EXISTS.to_owned()),
            Error::Caller(Caller::InvalidKeyName(_)) => {
                (400, invalid_name("key name", self.argument))
            }
            Error::KeyState { problem, .. } => match problem {
                KeyProblem::NotFound | KeyProblem::Destroyed => {
                    (404, proto::KEY_NOT_FOUND.to_owned())
                }
                KeyProblem::Disabled | KeyProblem::PendingDeletion | KeyProblem::NotAuthorized => {
                    (403, format!("key {problem}"))
                }
            },
            Error::Corrupt(crate::Place::DataKey(_)) => (400, proto::NOT_AUTHENTIC.to_owned()),
            Error::Caller(
                Caller::InvalidContext(_) | Caller::KeystoreFull | Caller::NotSupported(_),
            )
            | Error::Outage(_)
            | Error::Corrupt(_)
            | Error::Environment(
                Environment::WrongRootKey
                | Environment::RootKeyFormat
                | Environment::WrongPassphrase
                | Environment::ShortPassphrase
                | Environment::Share(_)
                | Environment::Io { .. }
                | Environment::Configuration { .. }
                | Environment::OtherKeystore { .. }
                | Environment::KeystoreBroken,
            ) => {
                self.server.report(error);
                (502, otherwise.to_owned())
            }
        }
    }

    fn check_key_name(&self) -> Result<(), Refusal> {
        name::check(self.argument).map_err(|_| (400, invalid_name("key name", self.argument)))
    }

    fn check_policy_name(&self) -> Result<(), Refusal> {
        if is_name(self.argument) {
            return Ok(());
        }
        Err((400, invalid_name("policy name", self.argument)))
    }

    /// The argument as a prefix to list by.
    fn checked_pattern(&self) -> Result<&str, Refusal> {
        let stem = self.argument.strip_suffix('*').unwrap_or(self.argument);
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if self.argument.len() <= KEY_NAME_BYTES_MAX && stem.bytes().all(fits) {
            return Ok(self.argument);
        }
        let shown = &self.argument;
        Err((
            400,
            format!("listing pattern '{shown}' is empty, too long or is invalid"),
        ))
    }

    fn matching<'a>(&self, all: impl Iterator<Item = &'a str>) -> Result<Vec<String>, Refusal> {
        let pattern = self.checked_pattern()?;
        let prefix = pattern.strip_suffix('*').unwrap_or(pattern);
        Ok(all
            .filter(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .collect())
    }

    fn policy_of(&self, identity: &str) -> Option<(&str, &super::policy::Policy)> {
        let mut policies = self.loaded.config.policies.iter();
        policies
            .find(|(_, policy)| policy.identities.contains(identity))
            .map(|(name, policy)| (name.as_str(), policy))
    }

    fn described(&self) -> Described<'_> {
        Described {
            created_at: self.loaded.since.to_string(),
            ..Described::default()
        }
    }
}

/// What is told of a policy or an identity.
#[derive(Default, Serialize)]
struct Described<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    allow: Patterns<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    deny: Patterns<'a>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<&'a str>,
}

/// Patterns as the names of empty objects.
type Patterns<'a> = BTreeMap<&'a str, BTreeMap<(), ()>>;

fn patterns(set: &BTreeSet<String>) -> Patterns<'_> {
    set.iter()
        .map(|pattern| (pattern.as_str(), BTreeMap::new()))
        .collect()
}

#[derive(Serialize)]
struct Listed {
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identities: Option<Vec<String>>,
    continue_at: &'static str,
}

fn refuse(status: u16, message: &str) -> Answer {
    Err((status, message.to_owned()))
}

fn invalid_body() -> Refusal {
    (400, "invalid request body".to_owned())
}

fn invalid_name(what: &str, name: &str) -> String {
    format!("{what} '{name}' is empty, too long or contains invalid characters")
}

fn is_name(text: &str) -> bool {
    name::check(text).is_ok()
}

fn empty() -> ServerResponse {
    answer(200, Zeroizing::default())
}

fn answer(status: u16, body: Zeroizing<Vec<u8>>) -> ServerResponse {
    ServerResponse {
        status,
        headers: Vec::new(),
        body: ServerBody::Bytes(body),
    }
}

fn json_answer(body: &impl Serialize) -> ServerResponse {
    let mut bytes = proto::encode(body);
    bytes.push(b'\n');
    let mut answer = answer(200, bytes);
    answer
        .headers
        .push(("content-type", "application/json".to_owned()));
    answer
}

/// The name that Go has for this machine's architecture.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
