//! What the operator says: flags, environment variables, and the credentials of root.
//!
//! Every flag is also an environment variable `STRONGROOM_…`; some MinIO names are understood where ours are not set.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use strongroom_engine::DRIVES_MAX;
use strongroom_kms::{Remote, expand_ranges};
use zeroize::Zeroizing;

use crate::key_service;
use crate::root_key;
use crate::service::proxy::Network;
use crate::store_key::MetadataKey;
use crate::tls;

/// How ETags of objects whose ETag is an MD5 on S3 are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Etag {
    /// The MD5 of the content, as on S3
    Md5,
    /// Random, for those who never compare ETags: saves the MD5's processor time
    Opaque,
}

/// What becomes of objects for which neither the request nor the bucket names a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DefaultEncryption {
    /// Sealed with a key of the server
    SseS3,
    /// Sealed with the default key of the key service (aws:kms)
    SseKms,
    /// Stored as they come
    None,
}

/// `strongroom serve`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Environment beside the options:
  STRONGROOM_ROOT_USER, STRONGROOM_ROOT_PASSWORD
          The root user's credentials (MINIO_ROOT_USER and MINIO_ROOT_PASSWORD are understood);
          without them they stand in DATA_DIR/root-credentials, made on first start
  STRONGROOM_KMS_ROOT_KEY, STRONGROOM_KMS_ROOT_KEY_FILE
          The key that opens the keystore, base64 of 32 bytes, or a file that holds it;
          without them it stands in DATA_DIR/root.key, made on first start
  STRONGROOM_KMS_KES_ENDPOINT, STRONGROOM_KMS_KES_KEY_NAME
          KES servers (https://kes{1...3}:7373, or a list with commas) and the key for what names none: new
          objects are sealed under KES then. MINIO_KMS_… is understood, here and below
  STRONGROOM_KMS_KES_API_KEY, or STRONGROOM_KMS_KES_CERT_FILE and STRONGROOM_KMS_KES_KEY_FILE
          How this server proves to KES who it is; the files are read again when they change
  STRONGROOM_KMS_KES_CAPATH
          File or directory of the certificates to trust, of CAs or of the KES servers themselves;
          without it those of the system and of DATA_DIR/certs/CAs
  STRONGROOM_KMS_SECRET_KEY, STRONGROOM_KMS_SECRET_KEY_FILE
          A static key for new objects, NAME:BASE64, or a file that holds it
  STRONGROOM_METRICS_TOKEN
          The token itself, instead of --metrics-token-file
  STRONGROOM_LOG
          What is logged: error, warn, info (the default), debug")]
pub struct Serve {
    /// Directory of the store, or one on each of its drives: DIR DIR… or /mnt/disk{1...4}; made on first start
    #[arg(value_name = "DATA_DIR", env = "STRONGROOM_DATA_DIR", required = true, num_args = 1..)]
    pub data_dirs: Vec<PathBuf>,

    /// Address and port to listen on
    #[arg(long, env = "STRONGROOM_ADDRESS", default_value = "127.0.0.1:9000", value_parser = parse_address)]
    pub address: SocketAddr,

    /// Also serve buckets as BUCKET.DOMAIN (virtual-host style)
    #[arg(long, env = "STRONGROOM_DOMAIN")]
    pub domain: Option<String>,

    /// Threads that serve, one pinned to a core [default: all cores]
    #[arg(long, env = "STRONGROOM_SHARDS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,

    /// Directory of public.crt, private.key and CAs/; read again when they change [default: DATA_DIR/certs]
    #[arg(long, env = "STRONGROOM_CERTS_DIR")]
    pub certs_dir: Option<PathBuf>,

    /// Serve plain HTTP
    #[arg(long, env = "STRONGROOM_NO_TLS", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub no_tls: bool,

    /// Region that requests are signed for
    #[arg(long, env = "STRONGROOM_REGION", default_value = "us-east-1")]
    pub region: String,

    /// ETags of objects that are not under a customer's or a named key
    #[arg(long, env = "STRONGROOM_ETAG", default_value = "md5")]
    pub etag: Etag,

    /// Encryption where neither request nor bucket says [default: sse-s3, or sse-kms with MINIO_KMS_AUTO_ENCRYPTION=on]
    #[arg(long, env = "STRONGROOM_DEFAULT_ENCRYPTION")]
    pub default_encryption: Option<DefaultEncryption>,

    /// Refuse customers' keys (SSE-C) in buckets whose configuration does not say otherwise, as AWS does
    #[arg(long, env = "STRONGROOM_BLOCK_SSE_C", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub block_sse_c: bool,

    /// Accept customers' keys (SSE-C) over plain HTTP, where they can be read on the way
    #[arg(long, env = "STRONGROOM_ALLOW_SSE_C_WITHOUT_TLS", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub allow_sse_c_without_tls: bool,

    /// Addresses or networks of proxies that take TLS for this server (10.0.0.0/8,::1): their X-Forwarded-Proto counts
    #[arg(
        long,
        env = "STRONGROOM_TRUSTED_PROXIES",
        value_delimiter = ',',
        value_name = "NETWORKS"
    )]
    pub trusted_proxies: Vec<Network>,

    /// Memory for sealed data that is read often, in bytes or with K, M or G; 0 for none [default: an eighth of the memory]
    #[arg(long, env = "STRONGROOM_CACHE_SIZE", value_name = "BYTES", value_parser = parse_size)]
    pub cache_size: Option<u64>,

    /// File with the token that lets others than this machine read /metrics
    #[arg(long, env = "STRONGROOM_METRICS_TOKEN_FILE", value_name = "FILE")]
    pub metrics_token_file: Option<PathBuf>,

    /// How long requests under way may take to finish at shutdown (10s, 500ms, 1m)
    #[arg(long, env = "STRONGROOM_DRAIN_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// How fast stored bytes are read on each drive in the background to look for rot; 0 turns it off
    #[arg(
        long,
        env = "STRONGROOM_SCRUB_RATE",
        value_name = "BYTES_PER_SECOND",
        default_value = "8388608"
    )]
    pub scrub_rate: u64,

    /// Age at which multipart uploads nobody completed are aborted
    #[arg(long, env = "STRONGROOM_STALE_UPLOADS", default_value = "7d", value_parser = parse_duration)]
    pub stale_uploads: Duration,

    /// What the key of the index stands under, and with it listings and HEAD: the root key, so that they work while the key service
    /// is sealed or down, or the default key of the key service and nothing else, so that whatever locks or deletes that key locks
    /// or erases the whole store. Moves the key of a store that is there; the key service has to be reachable for it, both
    /// ways [default: as the store is; local for a new one]
    #[arg(long, env = "STRONGROOM_METADATA_KEY")]
    pub metadata_key: Option<MetadataKey>,

    #[command(flatten)]
    pub key_service: key_service::Options,
}

impl Serve {
    /// Fills in what other names of the environment say.
    pub fn with_foreign_names(mut self) -> Self {
        if self.domain.is_none() {
            self.domain = non_empty("MINIO_DOMAIN");
        }
        let auto = non_empty("MINIO_KMS_AUTO_ENCRYPTION");
        if self.default_encryption.is_none() && auto.is_some_and(|value| is_on(&value)) {
            self.default_encryption = Some(DefaultEncryption::SseKms);
        }
        self
    }

    /// What becomes of objects for which neither the request nor the bucket names a mode.
    pub fn default_encryption(&self) -> DefaultEncryption {
        self.default_encryption.unwrap_or(DefaultEncryption::SseS3)
    }

    /// What the cache may take.
    pub fn cache_bytes(&self) -> u64 {
        self.cache_size.unwrap_or_else(|| memory_bytes() / 8)
    }

    /// Where the certificates are; of several data directories the first that has some.
    pub fn certs_dir(&self, data_dirs: &[PathBuf]) -> PathBuf {
        let own = || root_key::in_any(data_dirs, tls::DIRECTORY);
        self.certs_dir.clone().unwrap_or_else(own)
    }
}

/// The file with the root user's credentials.
pub const CREDENTIALS: &str = "root-credentials";
const METRICS_TOKEN: &str = "STRONGROOM_METRICS_TOKEN";

/// Variables that are read, beside those of the flags.
const OTHER_VARIABLES: [&str; 7] = [
    "STRONGROOM_ROOT_USER",
    "STRONGROOM_ROOT_PASSWORD",
    "STRONGROOM_KMS_ROOT_KEY",
    "STRONGROOM_KMS_ROOT_KEY_FILE",
    "STRONGROOM_LOG",
    METRICS_TOKEN,
    "STRONGROOM_CPU_DENY",
];

/// `STRONGROOM_…` variables that are set and mean nothing: probably misspelt.
pub fn unknown_variables(command: &clap::Command) -> Vec<String> {
    let mut known: Vec<String> = OTHER_VARIABLES.map(String::from).to_vec();
    known.extend(Remote::variables());
    add_variables(command, &mut known);
    let mut unknown: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("STRONGROOM_") && !name.starts_with("STRONGROOM_TEST_"))
        .filter(|name| !known.contains(name))
        .collect();
    unknown.sort();
    unknown
}

/// The variables of a command's options, and of all commands below it.
fn add_variables(command: &clap::Command, known: &mut Vec<String>) {
    let variables = command.get_arguments().filter_map(|arg| arg.get_env());
    known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    for sub in command.get_subcommands() {
        add_variables(sub, known);
    }
}

/// The directories of a store as an operator names them: each stands for one, or for several by a range, `/mnt/disk{1...4}`.
pub fn directories(named: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut all = Vec::new();
    for path in named {
        match path.to_str() {
            Some(text) if text.contains('{') && text.contains("...") && !path.exists() => {
                let mut each = Vec::new();
                expand_ranges(text, DRIVES_MAX, &mut each).ok_or_else(|| {
                    format!("{text}: a range is not of the form {{1...4}}, or is too long")
                })?;
                all.extend(each.into_iter().map(PathBuf::from));
            }
            _ => all.push(path.clone()),
        }
    }
    Ok(all)
}

/// The value of a variable that is set to something.
pub fn non_empty(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The words that switch a variable of MinIO's on.
fn is_on(value: &str) -> bool {
    ["on", "true", "1"]
        .iter()
        .any(|word| value.eq_ignore_ascii_case(word))
}

pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    text.to_socket_addrs()
        .map_err(|e| format!("not an address with a port: {e}"))?
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "a whole number, with K, M, G or T behind it or not, like 512M".to_owned())?;
    let unit = text[digits.len()..].to_ascii_uppercase();
    let power = match &*unit {
        "" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(format!("unknown unit {unit}: use K, M, G or T")),
    };
    number
        .checked_mul(1 << power)
        .ok_or_else(|| "too large".to_owned())
}

/// The memory that this process may use: the machine's, or less where a control group says so.
fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    });
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    [machine, group].into_iter().flatten().min().unwrap_or(0)
}

/// The token that lets others than this machine read the metrics: from the environment, or from a file.
pub fn metrics_token(file: Option<&Path>) -> Result<Option<Zeroizing<String>>, String> {
    let token = match (non_empty(METRICS_TOKEN), file) {
        (Some(_), Some(_)) => {
            return Err(format!(
                "{METRICS_TOKEN} and --metrics-token-file name a token each: use one of them"
            ));
        }
        (Some(token), None) => Zeroizing::new(token),
        (None, Some(file)) => fs::read_to_string(file)
            .map(Zeroizing::new)
            .map_err(|e| format!("--metrics-token-file {}: {e}", file.display()))?,
        (None, None) => return Ok(None),
    };
    match token.trim() {
        short if short.len() < 8 => {
            Err("the token for /metrics needs at least 8 characters".into())
        }
        token => Ok(Some(Zeroizing::new(token.to_owned()))),
    }
}

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "a whole number with ms, s, m, h or d behind it, like 10s".to_owned())?;
    let unit_ms = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        unit => return Err(format!("unknown unit {unit}: use ms, s, m, h or d")),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".to_owned())
}

/// The root user's name and password.
pub struct RootCredentials {
    pub user: String,
    pub password: Zeroizing<String>,
    pub from: CredentialsFrom,
}

/// Where the root user's credentials stand.
pub enum CredentialsFrom {
    /// In these variables of the environment.
    Environment {
        user: &'static str,
        password: &'static str,
    },
    File(PathBuf),
}

impl RootCredentials {
    /// From the environment, else from the store's file, else made and written there.
    pub fn load_or_make(data_dirs: &[PathBuf]) -> Result<RootCredentials, String> {
        let pairs = [
            ("STRONGROOM_ROOT_USER", "STRONGROOM_ROOT_PASSWORD"),
            ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"),
        ];
        for (user, password) in pairs {
            match (non_empty(user), non_empty(password).map(Zeroizing::new)) {
                (None, None) => {}
                (Some(_), None) => return Err(format!("{user} is set, {password} is not")),
                (None, Some(_)) => return Err(format!("{password} is set, {user} is not")),
                (Some(name), Some(_)) if name.len() < 3 => {
                    return Err(format!("{user} needs at least 3 characters"));
                }
                (Some(name), Some(_))
                    if !name
                        .bytes()
                        .all(|b| b.is_ascii_graphic() && b != b'/' && b != b',') =>
                {
                    return Err(format!(
                        "{user} may not hold blanks, control characters, / or ,"
                    ));
                }
                (Some(_), Some(secret)) if secret.len() < 8 => {
                    return Err(format!("{password} needs at least 8 characters"));
                }
                (Some(name), Some(secret)) => {
                    return Ok(RootCredentials {
                        user: name,
                        password: secret,
                        from: CredentialsFrom::Environment { user, password },
                    });
                }
            }
        }
        let path = root_key::in_any(data_dirs, CREDENTIALS);
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        match fs::read_to_string(&path).map(Zeroizing::new) {
            Ok(text) => {
                let mode = fs::metadata(&path).map_err(|e| failed(&e))?.mode();
                if mode & 0o077 != 0 {
                    tracing::warn!(
                        "{} can be read by other users: chmod 600 it",
                        path.display()
                    );
                }
                let (user, password) = parse_credentials(&text).ok_or_else(|| {
                    failed(&"expected lines aws_access_key_id = … and aws_secret_access_key = …")
                })?;
                let read = RootCredentials {
                    user,
                    password,
                    from: CredentialsFrom::File(path.clone()),
                };
                read.write_where_missing(data_dirs)?;
                Ok(read)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made = RootCredentials {
                    user: random_text(20),
                    password: Zeroizing::new(random_text(40)),
                    from: CredentialsFrom::File(path),
                };
                made.write_where_missing(data_dirs)?;
                Ok(made)
            }
            Err(e) => Err(failed(&e)),
        }
    }

    /// Writes them in every directory that has none, so that they are there whichever drive is.
    fn write_where_missing(&self, data_dirs: &[PathBuf]) -> Result<(), String> {
        let paths = data_dirs.iter().map(|dir| dir.join(CREDENTIALS));
        for path in paths.filter(|path| !path.exists()) {
            self.write(&path)
                .map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }

    /// In the form of an AWS shared credentials file, so that clients can be pointed at it.
    fn write(&self, path: &Path) -> io::Result<()> {
        let text = Zeroizing::new(format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.user, *self.password
        ));
        let draft = path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        let dir = path.parent().expect("a file in the data directory");
        File::open(dir)?.sync_all()
    }
}

fn parse_credentials(text: &str) -> Option<(String, Zeroizing<String>)> {
    let value = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    let password = Zeroizing::new(value("aws_secret_access_key")?);
    Some((value("aws_access_key_id")?, password))
}

/// Letters and digits, about 5.95 random bits each.
fn random_text(len: usize) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(len);
    while text.len() < len {
        let mut byte = [0u8];
        getrandom::fill(&mut byte).expect("the operating system gives random bytes");
        // 248 is the largest multiple of 62 below 256: no letter is likelier than another.
        if byte[0] < 248 {
            text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_addresses_parse() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in [
            "",
            "s",
            "1.5s",
            "-1s",
            "3 weeks",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("2GiB", 2 << 30),
            ("2gb", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "1.5G", "1X", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(memory_bytes() > 100 << 20);
        assert_eq!(parse_address(":9000").unwrap().port(), 9000);
        assert!(parse_address("127.0.0.1").is_err());
    }

    #[test]
    fn a_range_names_several_directories() {
        let each = |text: &str| directories(&[text.into()]);
        let paths = |names: &[&str]| Ok(names.iter().map(PathBuf::from).collect());
        assert_eq!(each("/no/d{1...3}"), paths(&["/no/d1", "/no/d2", "/no/d3"]));
        assert_eq!(each("/no/d{1}"), paths(&["/no/d{1}"]));
        assert_eq!(each("/no/such..."), paths(&["/no/such..."]));
        for bad in ["/no/d{3...1}", "/no/d{1...}", "/no/d{1...1000}"] {
            assert!(each(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn made_credentials_are_kept_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let second = tempfile::tempdir().unwrap();
        let one = [dir.path().to_owned()];
        let made = RootCredentials::load_or_make(&one).unwrap();
        let both = [second.path().to_owned(), dir.path().to_owned()];
        RootCredentials::load_or_make(&both).unwrap();
        let again = RootCredentials::load_or_make(&both[..1]).unwrap();
        assert_eq!((made.user.len(), made.password.len()), (20, 40));
        assert!(made.user == again.user && made.password == again.password);
        let mode = fs::metadata(dir.path().join("root-credentials"))
            .unwrap()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join("root-credentials"), "nonsense").unwrap();
        assert!(RootCredentials::load_or_make(&one).is_err());
    }
}
