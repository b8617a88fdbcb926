//! KES's own configuration file, as far as the compatible server goes by it.
//!
//! What the file asks for and this server cannot do is an error that names it: a key store of another kind,
//! an encrypted private key. What KES itself reads and does not use is passed over, with a warning.
//! Any value may be `${NAME}`, which stands for a variable that has to be set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::policy::{Identity, Policy};
use crate::error::Error;
use crate::limits::CREATED_BY_BYTES_MAX;
use crate::name;

/// What a KES configuration file says.
#[derive(Debug)]
pub struct KesConfig {
    /// Where to listen, `0.0.0.0:7373` when not said.
    pub address: String,
    pub tls: KesTls,
    /// Where the keystore's directory is.
    pub keystore: PathBuf,
    /// Keys to make at the start, if they are not there.
    pub keys: Vec<String>,
    pub cache: KesCacheExpiry,
    /// Whether errors are shown on the console.
    pub log_error: bool,
    /// Whether audit events are shown on the console.
    pub log_audit: bool,
    pub(crate) admin: Identity,
    pub(crate) policies: BTreeMap<String, Policy>,
    pub(crate) routes: BTreeMap<String, RouteConfig>,
}

/// Where the server's certificate is, and how to look at those of clients.
#[derive(Debug, Clone)]
pub struct KesTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whether client certificates have to be signed by a CA that is trusted.
    pub verify_clients: bool,
    /// The CA certificates to verify them by, instead of the system's.
    pub ca: Option<PathBuf>,
}

/// The cache times in the file. The embedded keystore needs no cache: they are read, not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KesCacheExpiry {
    pub any: Duration,
    pub unused: Duration,
    pub offline: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RouteConfig {
    pub(crate) skip_auth: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Routes that may be open to clients without a certificate.
const OPEN_ROUTES: [&str; 4] = ["/v1/ready", "/v1/status", "/v1/metrics", "/v1/api"];

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    version: Text,
    #[serde(default)]
    address: Text,
    admin: Option<Admin>,
    tls: Option<Tls>,
    #[serde(default)]
    api: BTreeMap<String, Option<Api>>,
    #[serde(default)]
    policy: BTreeMap<String, Option<PolicyEntry>>,
    cache: Option<Cache>,
    log: Option<Log>,
    #[serde(default)]
    keys: Option<Vec<KeyEntry>>,
    keystore: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// The one kind of key store that is supported, read once the others are refused by name.
#[derive(Deserialize)]
struct KeystoreFile {
    keystore: Keystore,
}

#[derive(Deserialize)]
struct Keystore {
    fs: Fs,
}

#[derive(Deserialize)]
struct Fs {
    path: Text,
}

#[derive(Deserialize)]
struct Admin {
    #[serde(default)]
    identity: Text,
}

#[derive(Deserialize)]
struct Tls {
    #[serde(default)]
    key: Text,
    #[serde(default)]
    cert: Text,
    #[serde(default)]
    password: Text,
    #[serde(default)]
    auth: Text,
    #[serde(default)]
    ca: Text,
    proxy: Option<Proxy>,
}

#[derive(Deserialize)]
struct Proxy {
    #[serde(default)]
    identities: Option<Vec<Text>>,
}

#[derive(Deserialize)]
struct Api {
    #[serde(default)]
    skip_auth: bool,
    #[serde(default)]
    timeout: Text,
}

#[derive(Deserialize)]
struct PolicyEntry {
    #[serde(default)]
    allow: Option<Vec<Text>>,
    #[serde(default)]
    deny: Option<Vec<Text>>,
    #[serde(default)]
    identities: Option<Vec<Text>>,
}

#[derive(Deserialize)]
struct Cache {
    expiry: Option<Expiry>,
}

#[derive(Deserialize)]
struct Expiry {
    #[serde(default)]
    any: Text,
    #[serde(default)]
    unused: Text,
    #[serde(default)]
    offline: Text,
}

#[derive(Deserialize)]
struct Log {
    #[serde(default)]
    error: Text,
    #[serde(default)]
    audit: Text,
}

#[derive(Deserialize)]
struct KeyEntry {
    name: Text,
}

/// A value as it stands in the file; absent and null are empty.
#[derive(Default, Deserialize)]
#[serde(from = "Option<String>")]
struct Text(String);

impl From<Option<String>> for Text {
    fn from(text: Option<String>) -> Self {
        Self(text.unwrap_or_default())
    }
}

impl Text {
    /// The value, or the variable it stands for.
    fn value(self, what: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<String, Error> {
        let Some(variable) = self
            .0
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'))
        else {
            return Ok(self.0);
        };
        get(variable.trim())
            .ok_or_else(|| bad(what, format!("the variable {variable:?} is not set")))
    }
}

impl KesConfig {
    /// Reads a configuration file; `get` looks variables up.
    pub fn parse(yaml: &str, get: impl Fn(&str) -> Option<String>) -> Result<KesConfig, Error> {
        let get: &dyn Fn(&str) -> Option<String> = &get;
        let file: File =
            serde_saphyr::from_str(yaml).map_err(|error| bad("the file", error.to_string()))?;
        match file.version.value("version", get)?.as_str() {
            "" | "v1" => {}
            other => return Err(bad("version", format!("{other:?} is not supported, v1 is"))),
        }
        let address = match file.address.value("address", get)? {
            empty if empty.is_empty() => "0.0.0.0:7373".to_owned(),
            address => address,
        };
        let admin = file.admin.ok_or_else(|| bad("admin", "is missing"))?;
        let admin = admin.identity.value("admin.identity", get)?;
        if admin.is_empty() {
            return Err(bad("admin.identity", "is missing"));
        }
        // Keys name who made them.
        if admin.len() > CREATED_BY_BYTES_MAX {
            let most = format!("is longer than {CREATED_BY_BYTES_MAX} bytes");
            return Err(bad("admin.identity", most));
        }
        let admin = Identity::new(&admin);

        let keystore = keystore(yaml, file.keystore.as_ref(), get)?;
        let mut keys = Vec::new();
        for key in file.keys.unwrap_or_default() {
            let key = key.name.value("keys", get)?;
            name::check(&key).map_err(|error| bad("keys", error.to_string()))?;
            if keys.contains(&key) {
                return Err(bad("keys", format!("{key:?} is listed twice")));
            }
            keys.push(key);
        }
        let policies = policies(file.policy, &admin, get)?;
        let routes = routes(file.api, get)?;
        let expiry = file.cache.and_then(|cache| cache.expiry);
        let (error, audit) = file
            .log
            .map_or_else(Default::default, |log| (log.error, log.audit));
        Ok(KesConfig {
            address,
            tls: tls(
                file.tls.ok_or_else(|| bad("tls", "is missing"))?,
                &admin,
                get,
            )?,
            keystore,
            keys,
            cache: cache(expiry, get)?,
            log_error: log_level("log.error", &error.value("log.error", get)?, true)?,
            log_audit: log_level("log.audit", &audit.value("log.audit", get)?, false)?,
            admin,
            policies,
            routes,
        })
    }

    /// The identity that may call everything.
    #[must_use]
    pub fn admin(&self) -> &str {
        self.admin.as_str()
    }

    /// Whether some route is open to clients that show no certificate.
    #[must_use]
    pub fn some_route_is_open(&self) -> bool {
        self.routes.values().any(|route| route.skip_auth)
    }
}

fn keystore(
    yaml: &str,
    kinds: Option<&BTreeMap<String, serde::de::IgnoredAny>>,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, Error> {
    let mut kinds = kinds.into_iter().flatten().map(|(kind, _)| kind.as_str());
    let kind = kinds
        .next()
        .ok_or_else(|| bad("keystore", "none is specified"))?;
    if let Some(second) = kinds.next() {
        return Err(bad(
            "keystore",
            format!("{kind:?} and {second:?}: only one can be specified"),
        ));
    }
    if kind != "fs" {
        let problem = "this kind is not supported; import its keys into a keystore of kind fs";
        return Err(bad(&format!("keystore.{kind}"), problem));
    }
    let file: KeystoreFile =
        serde_saphyr::from_str(yaml).map_err(|_| bad("keystore.fs.path", "is missing"))?;
    let path = file.keystore.fs.path.value("keystore.fs.path", get)?;
    if path.is_empty() {
        return Err(bad("keystore.fs.path", "is missing"));
    }
    Ok(path.into())
}

fn tls(tls: Tls, admin: &Identity, get: &dyn Fn(&str) -> Option<String>) -> Result<KesTls, Error> {
    let path = |text: Text, what: &str| match text.value(what, get)? {
        empty if empty.is_empty() => Err(bad(what, "is missing")),
        path => Ok(PathBuf::from(path)),
    };
    if !tls.password.value("tls.password", get)?.is_empty() {
        let problem = "encrypted private keys are not supported; protect the file instead";
        return Err(bad("tls.password", problem));
    }
    for proxy in tls
        .proxy
        .and_then(|proxy| proxy.identities)
        .unwrap_or_default()
    {
        let proxy = proxy.value("tls.proxy.identities", get)?;
        if admin.is(&proxy) {
            return Err(bad("tls.proxy.identities", "the admin cannot be a proxy"));
        }
        if !proxy.is_empty() {
            tracing::warn!("tls.proxy is not used: clients have to connect themselves");
        }
    }
    let ca = tls.ca.value("tls.ca", get)?;
    Ok(KesTls {
        certificate: path(tls.cert, "tls.cert")?,
        key: path(tls.key, "tls.key")?,
        verify_clients: on_or_off("tls.auth", &tls.auth.value("tls.auth", get)?, false)?,
        ca: (!ca.is_empty()).then(|| ca.into()),
    })
}

fn policies(
    entries: BTreeMap<String, Option<PolicyEntry>>,
    admin: &Identity,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Policy>, Error> {
    let mut policies = BTreeMap::new();
    let mut bound = BTreeSet::new();
    for (name, entry) in entries {
        let what = format!("policy.{name}");
        name::check(&name).map_err(|_| bad(&what, "the name is not a valid one"))?;
        let values = |list: Option<Vec<Text>>| {
            list.unwrap_or_default()
                .into_iter()
                .map(|text| text.value(&what, get))
                .collect::<Result<BTreeSet<String>, Error>>()
        };
        let (allow, deny, identities) =
            entry.map_or_else(Default::default, |e| (e.allow, e.deny, e.identities));
        let policy = Policy {
            allow: values(allow)?,
            deny: values(deny)?,
            identities: values(identities)?
                .into_iter()
                .filter(|identity| !identity.is_empty())
                .collect(),
        };
        for identity in &policy.identities {
            if admin.is(identity) {
                return Err(bad(&what, "the admin needs no policy and can have none"));
            }
            if !bound.insert(identity.clone()) {
                return Err(bad(
                    &what,
                    format!("identity {identity:?} has two policies"),
                ));
            }
        }
        policies.insert(name, policy);
    }
    Ok(policies)
}

fn routes(
    entries: BTreeMap<String, Option<Api>>,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, RouteConfig>, Error> {
    let mut routes = BTreeMap::new();
    for (path, entry) in entries {
        let what = format!("api.{path}");
        if !super::is_route(&path) {
            return Err(bad(&what, "there is no such route"));
        }
        let Some(entry) = entry else { continue };
        // Elsewhere this opened the keys themselves to everybody.
        if entry.skip_auth && !OPEN_ROUTES.contains(&path.as_str()) {
            return Err(bad(
                &what,
                "skip_auth is for ready, status, metrics and api only",
            ));
        }
        let route = RouteConfig {
            skip_auth: entry.skip_auth,
            timeout: duration(&what, &entry.timeout.value(&what, get)?)?,
        };
        routes.insert(path, route);
    }
    Ok(routes)
}

fn cache(
    expiry: Option<Expiry>,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<KesCacheExpiry, Error> {
    let mut times = [
        Duration::from_secs(300),
        Duration::from_secs(30),
        Duration::ZERO,
    ];
    if let Some(expiry) = expiry {
        for (time, (what, text)) in times.iter_mut().zip([
            ("cache.expiry.any", expiry.any),
            ("cache.expiry.unused", expiry.unused),
            ("cache.expiry.offline", expiry.offline),
        ]) {
            if let Some(given) = duration(what, &text.value(what, get)?)? {
                *time = given;
            }
        }
    }
    let [any, unused, offline] = times;
    Ok(KesCacheExpiry {
        any,
        unused,
        offline,
    })
}

fn on_or_off(what: &str, text: &str, default: bool) -> Result<bool, Error> {
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(default),
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(bad(what, format!("{text:?} is neither on nor off"))),
    }
}

/// `on`, `off`, or a level such as `WARN` or `INFO+2`.
fn log_level(what: &str, text: &str, default: bool) -> Result<bool, Error> {
    let level = text
        .split(['+', '-'])
        .next()
        .unwrap_or_default()
        .to_ascii_uppercase();
    if ["DEBUG", "INFO", "WARN", "ERROR"].contains(&level.as_str()) {
        return Ok(true);
    }
    on_or_off(what, text, default)
}

/// A time as Go writes it, `1h30m` or `250ms`; nothing when the text is empty.
fn duration(what: &str, text: &str) -> Result<Option<Duration>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = if text == "0" {
        Some(Duration::ZERO)
    } else {
        go_duration(text)
    };
    parsed
        .map(Some)
        .ok_or_else(|| bad(what, format!("{text:?} is not a time")))
}

fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    Some(total)
}

fn bad(what: &str, problem: impl Into<String>) -> Error {
    Error::configuration(format!("KES configuration: {what}"), problem)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ADMIN: &str =
        "87a866f48485aae38a21574eb514ed9ea1df6453f0a86e3529bfe22096d2f10d";
    pub(crate) const READER: &str =
        "6448b9b3437bb7d79a8404d56010fc2bc9aa1c4e356e542f99f9c41db4d5f164";

    /// The set-up that the recorded exchanges were made with.
    pub(crate) fn golden() -> String {
        format!(
            "version: v1
address: 127.0.0.1:7373
admin:
  identity: {ADMIN}
tls:
  key: private.key
  cert: public.crt
policy:
  reader:
    allow:
    - /v1/key/decrypt/golden*
    - /v1/key/describe/*
    deny:
    - /v1/key/decrypt/golden-no*
    identities:
    - {READER}
keystore:
  fs:
    path: /data/kes
"
        )
    }

    fn parse(yaml: &str) -> Result<KesConfig, Error> {
        KesConfig::parse(yaml, |name| {
            (name == "SET").then(|| "from-variable".to_owned())
        })
    }

    fn refused(from: &str, to: &str) -> String {
        let yaml = golden();
        assert!(yaml.contains(from), "{from}");
        parse(&yaml.replace(from, to))
            .err()
            .unwrap_or_else(|| panic!("{to} was taken"))
            .to_string()
    }

    #[test]
    fn a_whole_file() {
        let config = parse(&golden()).unwrap();
        assert_eq!(config.address, "127.0.0.1:7373");
        assert_eq!(config.keystore, PathBuf::from("/data/kes"));
        assert!(config.admin.is(ADMIN));
        assert!(!config.tls.verify_clients && !config.some_route_is_open());
        assert_eq!(config.policies["reader"].allow.len(), 2);
        assert_eq!(config.cache.any, Duration::from_secs(300));
        assert!(config.log_error && !config.log_audit);

        let more = golden()
            + "
api:
  /v1/ready:
    skip_auth: true
    timeout: 1m30s
  /v1/metrics:
cache:
  expiry:
    any: 5m0s
    unused: 20s
    offline: 0s
log:
  error: on
  audit: INFO+2
keys:
  - name: one
  - name: ${SET}
";
        let config = parse(&more).unwrap();
        assert!(config.some_route_is_open());
        assert_eq!(
            config.routes["/v1/ready"].timeout,
            Some(Duration::from_secs(90))
        );
        assert_eq!(config.keys, ["one", "from-variable"]);
        assert_eq!(config.cache.unused, Duration::from_secs(20));
        assert!(config.log_audit);
    }

    #[test]
    fn what_is_missing_or_unsupported_is_named() {
        for (from, to, want) in [
            ("version: v1", "version: v2", "version"),
            ("  key: private.key\n", "", "tls.key"),
            ("cert: public.crt", "cert: ${UNSET}", "UNSET"),
            ("cert: public.crt", "cert: c\n  password: x", "tls.password"),
            ("cert: public.crt", "cert: c\n  auth: maybe", "tls.auth"),
            (
                "  fs:\n    path: /data/kes",
                "  vault:\n    endpoint: https://v",
                "keystore.vault",
            ),
            (
                "  fs:\n    path: /data/kes",
                "  aws:\n    secretsmanager: {}",
                "keystore.aws",
            ),
            (
                "    path: /data/kes",
                "    path: /data/kes\n  vault: {}",
                "only one",
            ),
            ("  fs:\n    path: /data/kes", "  {}", "none is specified"),
            ("    path: /data/kes", "    path: \"\"", "keystore.fs.path"),
            ("  reader:", "  \"bad name\":", "policy.bad name"),
            (
                "address:",
                "keys: [{name: a}, {name: a}]\naddress:",
                "twice",
            ),
            ("address:", "keys: [{name: a b}]\naddress:", "keys"),
            (
                "address:",
                "api: {/v1/key/create/: {skip_auth: true}}\naddress:",
                "skip_auth",
            ),
            (
                "address:",
                "api: {/v1/nothing: {}}\naddress:",
                "no such route",
            ),
            (
                "address:",
                "api: {/v1/ready: {timeout: soon}}\naddress:",
                "not a time",
            ),
            ("address:", "log: {audit: loud}\naddress:", "log.audit"),
            (READER, ADMIN, "the admin"),
            (ADMIN, "\"\"", "admin.identity"),
            ("address", "\taddress", "the file"),
        ] {
            let text = refused(from, to);
            assert!(text.contains(want), "{to}: {text}");
        }
        let two = golden() + "  x: {identities: [a]}\n";
        let two = two
            .replace("keystore:", "x_keystore:")
            .replace("  x:", "x:")
            + "keystore: {fs: {path: p}}";
        assert!(parse(&two).is_ok(), "unknown fields are passed over");
        let twice = golden().replace(
            "keystore:",
            &format!("  other: {{identities: [{READER}]}}\nkeystore:"),
        );
        assert!(
            parse(&twice)
                .unwrap_err()
                .to_string()
                .contains("two policies")
        );
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("1h30m", Duration::from_secs(5400)),
            ("1.5s", Duration::from_millis(1500)),
            ("250ms", Duration::from_millis(250)),
        ] {
            assert_eq!(duration("x", text).unwrap(), Some(want));
        }
        for bad in ["5", "s", "-1s", "1d", "1s2", "1..5s", "9e99s"] {
            assert!(duration("x", bad).is_err(), "{bad}");
        }
    }
}
