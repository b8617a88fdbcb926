//! Which key service stands behind new writes, read from variables: the embedded keystore, a static key,
//! or KES servers.
//!
//! Each variable goes by our name, `STRONGROOM_KMS_…`, and by MinIO's, `MINIO_KMS_…`; ours wins. An empty
//! one counts as unset. What is contradictory, missing or not supported is an error that names the
//! variable and never its value: a server that quietly ran with another key would be worse than none.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::Error;
use crate::kes::api_key::ApiKey;
use crate::limits::{KES_ENDPOINTS_MAX, KEY_FILE_BYTES_MAX};
use crate::name;
use crate::static_key::StaticKey;

/// The key service for new writes, if it is not the embedded keystore.
pub enum Remote {
    Static(StaticKey),
    Kes(KesSettings),
}

/// How to reach KES servers.
pub struct KesSettings {
    pub endpoints: Vec<Endpoint>,
    /// The key for whatever names none.
    pub default_key: String,
    pub credentials: KesCredentials,
    /// A file or directory of the certificates to trust, of CAs and of KES servers themselves; `None`
    /// stands for those of the system.
    pub ca_path: Option<PathBuf>,
}

/// How this server proves to KES who it is.
pub enum KesCredentials {
    ApiKey(ApiKey),
    /// PEM files of a client certificate and its key, read again when they change.
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
}

/// One KES server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address, an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    /// `host:port` as a URL or a `Host` header has it.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Remote {
    /// The names of ours that [`Remote::from_variables`] asks for, those included that are refused.
    pub fn variables() -> impl Iterator<Item = String> {
        KES_VARIABLES
            .iter()
            .chain(&STATIC_VARIABLES)
            .chain(&UNSUPPORTED_VARIABLES)
            .map(|suffix| format!("STRONGROOM_KMS_{suffix}"))
    }

    /// Reads the variables through `get`; `None` stands for the embedded keystore.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Remote>, Error> {
        let variables = Variables { get: &get };
        for unsupported in UNSUPPORTED_VARIABLES {
            if let Some(found) = variables.read(unsupported) {
                return Err(Error::configuration(
                    found.name,
                    "MinIO's own key manager is not supported",
                ));
            }
        }
        let of_kes = KES_VARIABLES.iter().find_map(|name| variables.read(name));
        let of_static = variables.static_key()?;
        match (of_kes, of_static) {
            (Some(kes), Some(_)) => Err(Error::configuration(
                kes.name,
                "a static key is configured as well: choose one",
            )),
            (Some(_), None) => Ok(Some(Remote::Kes(variables.kes()?))),
            (None, Some(key)) => Ok(Some(Remote::Static(key))),
            (None, None) => Ok(None),
        }
    }
}

const UNSUPPORTED_VARIABLES: [&str; 4] = ["SERVER", "ENCLAVE", "SSE_KEY", "API_KEY"];
const STATIC_VARIABLES: [&str; 2] = ["SECRET_KEY", "SECRET_KEY_FILE"];
const KES_VARIABLES: [&str; 7] = [
    "KES_ENDPOINT",
    "KES_KEY_NAME",
    "KES_API_KEY",
    "KES_CERT_FILE",
    "KES_KEY_FILE",
    "KES_KEY_PASSWORD",
    "KES_CAPATH",
];

struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
}

struct Variable {
    name: String,
    value: Zeroizing<String>,
}

impl Variables<'_> {
    fn read(&self, suffix: &str) -> Option<Variable> {
        ["STRONGROOM_KMS_", "MINIO_KMS_"].iter().find_map(|prefix| {
            let name = format!("{prefix}{suffix}");
            let value = Zeroizing::new((self.get)(&name)?);
            (!value.is_empty()).then_some(Variable { name, value })
        })
    }

    fn require(&self, suffix: &str) -> Result<Variable, Error> {
        self.read(suffix).ok_or_else(|| {
            Error::configuration(
                format!("STRONGROOM_KMS_{suffix}"),
                "is needed for KES and not set",
            )
        })
    }

    fn static_key(&self) -> Result<Option<StaticKey>, Error> {
        let [direct, in_file] = STATIC_VARIABLES;
        match (self.read(direct), self.read(in_file)) {
            (Some(_), Some(file)) => Err(Error::configuration(
                file.name,
                "the static key is given directly as well: choose one",
            )),
            (Some(key), None) => StaticKey::parse(&key.value, &key.name).map(Some),
            (None, Some(file)) => {
                let text = read_key_file(Path::new(file.value.as_str()))?;
                StaticKey::parse(&text, &file.name).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    fn kes(&self) -> Result<KesSettings, Error> {
        let endpoints = self.require("KES_ENDPOINT")?;
        let default_key = self.require("KES_KEY_NAME")?;
        name::check(&default_key.value)
            .map_err(|error| Error::configuration(default_key.name, error.to_string()))?;
        if let Some(password) = self.read("KES_KEY_PASSWORD") {
            return Err(Error::configuration(
                password.name,
                "encrypted private keys are not supported; protect the file instead",
            ));
        }
        let credentials = match (
            self.read("KES_API_KEY"),
            self.read("KES_CERT_FILE"),
            self.read("KES_KEY_FILE"),
        ) {
            (Some(key), None, None) => {
                KesCredentials::ApiKey(ApiKey::parse(&key.value, &key.name)?)
            }
            (Some(_), Some(file), _) | (Some(_), None, Some(file)) => {
                return Err(Error::configuration(
                    file.name,
                    "an API key is given as well: choose one",
                ));
            }
            (None, Some(certificate), Some(key)) => KesCredentials::Files {
                certificate: certificate.value.as_str().into(),
                key: key.value.as_str().into(),
            },
            (None, Some(one), None) | (None, None, Some(one)) => {
                return Err(Error::configuration(
                    one.name,
                    "a certificate and its key are needed together",
                ));
            }
            (None, None, None) => {
                return Err(Error::configuration(
                    "STRONGROOM_KMS_KES_API_KEY",
                    "neither an API key nor a client certificate is given",
                ));
            }
        };
        Ok(KesSettings {
            endpoints: parse_endpoints(&endpoints.value, &endpoints.name)?,
            default_key: default_key.value.as_str().to_owned(),
            credentials,
            ca_path: self
                .read("KES_CAPATH")
                .map(|path| path.value.as_str().into()),
        })
    }
}

fn read_key_file(path: &Path) -> Result<Zeroizing<String>, Error> {
    let io = |source| Error::io("cannot read the static key", path, source);
    let mut text = Zeroizing::new(String::with_capacity(
        usize::try_from(KEY_FILE_BYTES_MAX).expect("small") + 1,
    ));
    File::open(path)
        .map_err(io)?
        .take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(io)?;
    Ok(text)
}

/// URLs separated by commas, each of which may hold ranges: `https://kes{1...3}:7373`.
fn parse_endpoints(list: &str, what: &str) -> Result<Vec<Endpoint>, Error> {
    let bad = |problem: &str| Error::configuration(what, problem);
    let mut urls: Vec<String> = Vec::new();
    for url in list.split(',') {
        expand_ranges(url.trim(), KES_ENDPOINTS_MAX, &mut urls)
            .ok_or_else(|| bad("a range is not of the form {1...4}, or is too long"))?;
    }
    let mut endpoints = Vec::with_capacity(urls.len());
    for url in urls {
        let endpoint =
            parse_url(&url).ok_or_else(|| bad("not a URL of the form https://HOST:PORT"))?;
        if endpoints.contains(&endpoint) {
            return Err(bad("an endpoint is listed twice"));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

/// Adds each text that one with ranges stands for: `r{1...2}` for `r1` and `r2`. None where a range is malformed, or where there
/// are more than `max`.
pub fn expand_ranges(text: &str, max: usize, out: &mut Vec<String>) -> Option<()> {
    let Some((before, rest)) = text.split_once('{') else {
        if out.len() >= max {
            return None;
        }
        out.push(text.to_owned());
        return Some(());
    };
    let (range, after) = rest.split_once('}')?;
    let (first, last) = range.split_once("...")?;
    let number = |text: &str| {
        (!text.is_empty() && text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse::<u32>().ok())?
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to || (to - from) as usize >= max {
        return None;
    }
    // A leading zero asks for numbers of that width.
    let width = if first.starts_with('0') {
        first.len()
    } else {
        0
    };
    (from..=to).try_for_each(|n| expand_ranges(&format!("{before}{n:0width$}{after}"), max, out))
}

fn parse_url(url: &str) -> Option<Endpoint> {
    let authority = url.strip_prefix("https://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':')?)
                },
            )
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    if host.is_empty() || !host.bytes().all(plain) {
        return None;
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => 443,
    };
    Some(Endpoint {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIC: &str = "my-key:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=";
    const API_KEY: &str = "kes:v1:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw";

    fn read(variables: &[(&str, &str)]) -> Result<Option<Remote>, Error> {
        Remote::from_variables(|name| {
            variables
                .iter()
                .find(|(held, _)| *held == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        let text = read(variables).err().expect("refused").to_string();
        assert!(!text.contains("wMHC") && !text.contains("ACQpo"), "{text}");
        text
    }

    #[test]
    fn nothing_set_is_the_embedded_keystore() {
        assert!(read(&[]).ok().unwrap().is_none());
        assert!(
            read(&[("MINIO_KMS_SECRET_KEY", ""), ("MINIO_KMS_KES_ENDPOINT", "")])
                .ok()
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn static_keys() {
        for name in ["MINIO_KMS_SECRET_KEY", "STRONGROOM_KMS_SECRET_KEY"] {
            assert!(
                matches!(read(&[(name, STATIC)]), Ok(Some(Remote::Static(key))) if key.name() == "my-key")
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, format!("{STATIC}\n")).unwrap();
        let file = [("MINIO_KMS_SECRET_KEY_FILE", path.to_str().unwrap())];
        assert!(matches!(read(&file), Ok(Some(Remote::Static(_)))));
        // A mistyped file name must not start a server without the key.
        let missing = [("MINIO_KMS_SECRET_KEY_FILE", "/nonexistent/key")];
        assert!(refused(&missing).contains("/nonexistent/key"));
        assert!(refused(&[("MINIO_KMS_SECRET_KEY", STATIC), file[0]]).contains("SECRET_KEY_FILE"));
        assert!(refused(&[("MINIO_KMS_SECRET_KEY", "nonsense")]).contains("MINIO_KMS_SECRET_KEY"));
    }

    #[test]
    fn kes_by_api_key_or_files() {
        let base = [
            (
                "MINIO_KMS_KES_ENDPOINT",
                "https://kes{1...3}.example:7373,https://[::1]:7000/",
            ),
            ("MINIO_KMS_KES_KEY_NAME", "minio-key"),
        ];
        let mut with_key = base.to_vec();
        with_key.push(("MINIO_KMS_KES_API_KEY", API_KEY));
        with_key.push(("MINIO_KMS_KES_CAPATH", "/ca"));
        let Ok(Some(Remote::Kes(settings))) = read(&with_key) else {
            panic!()
        };
        let authorities: Vec<String> = settings.endpoints.iter().map(Endpoint::authority).collect();
        assert_eq!(
            authorities,
            [
                "kes1.example:7373",
                "kes2.example:7373",
                "kes3.example:7373",
                "[::1]:7000"
            ]
        );
        assert_eq!(settings.default_key, "minio-key");
        assert_eq!(settings.ca_path.as_deref(), Some(Path::new("/ca")));
        assert!(matches!(settings.credentials, KesCredentials::ApiKey(_)));

        let mut with_files = base.to_vec();
        with_files.push(("STRONGROOM_KMS_KES_CERT_FILE", "c"));
        assert!(refused(&with_files).contains("together"));
        with_files.push(("STRONGROOM_KMS_KES_KEY_FILE", "k"));
        let Ok(Some(Remote::Kes(settings))) = read(&with_files) else {
            panic!()
        };
        assert!(matches!(settings.credentials, KesCredentials::Files { .. }));
        with_files.push(("MINIO_KMS_KES_API_KEY", API_KEY));
        assert!(refused(&with_files).contains("choose one"));

        assert!(refused(&base).contains("API_KEY"));
        assert!(refused(&with_key[1..]).contains("KES_ENDPOINT"));
        with_key.push(("MINIO_KMS_SECRET_KEY", STATIC));
        assert!(refused(&with_key).contains("choose one"));
        assert!(refused(&[("MINIO_KMS_SERVER", "https://x")]).contains("MINIO_KMS_SERVER"));
    }

    #[test]
    fn endpoints() {
        let parse = |text: &str| {
            parse_endpoints(text, "X")
                .map(|list| list.iter().map(Endpoint::authority).collect::<Vec<_>>())
        };
        assert_eq!(
            parse("https://a{08...10}").unwrap(),
            ["a08:443", "a09:443", "a10:443"]
        );
        assert_eq!(parse("https://r{1...2}h{1...2}:1").unwrap().len(), 4);
        for bad in [
            "",
            "http://a",
            "https://",
            "https://a:0",
            "https://a:x",
            "https://a/b",
            "https://a@b",
            "https://[::1",
            "https://[x]",
            "https://a{1..2}",
            "https://a{2...1}",
            "https://a{1...9999}",
            "https://a,https://a",
            "https://a{1...64}{1...2}",
            "https://a b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
