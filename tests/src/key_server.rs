//! A key server under test, `strongroom kms serve`, with the certificates of its clients.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::wire::{ClientCertificate, Connection, Head};
use crate::{binary, cli, server};

const PATIENCE: Duration = Duration::from_secs(60);

/// One client, known to the server by its identity.
pub struct Caller {
    pub identity: String,
    pub certificate: ClientCertificate,
}

pub struct KeyServer {
    pub address: SocketAddr,
    pub admin: Caller,
    pub reader: Caller,
    child: Option<Child>,
    home: TempDir,
}

#[derive(Debug)]
pub struct Response {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl KeyServer {
    /// Everything that a start needs: certificates and a configuration. It does not run yet.
    pub fn prepare() -> Self {
        let home = tempfile::Builder::new()
            .prefix("keys-")
            .tempdir_in(binary::scratch())
            .expect("the scratch directory is writable");
        let (admin, reader) = (caller(home.path(), "admin"), caller(home.path(), "reader"));
        caller(home.path(), "server");
        let server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], server::free_port())),
            admin,
            reader,
            child: None,
            home,
        };
        server.configure(|config| config);
        server
    }

    /// Starts a server with an empty keystore.
    pub fn start() -> Self {
        let mut server = Self::prepare();
        server.run();
        server
    }

    /// The directory of the keystore: what commands take as `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("keystore")
    }

    pub fn config_file(&self) -> PathBuf {
        self.home.path().join("kes.yml")
    }

    /// A file beside the server.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes the configuration, changed by `change`.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let home = self.home.path().display();
        let config = format!(
            "version: v1
address: {}
admin:
  identity: {}
tls:
  key: {home}/server.key
  cert: {home}/server.crt
policy:
  reader:
    allow:
    - /v1/key/decrypt/golden*
    - /v1/key/describe/*
    deny:
    - /v1/key/decrypt/golden-no*
    identities:
    - {}
keystore:
  fs:
    path: {home}/keystore
",
            self.address, self.admin.identity, self.reader.identity
        );
        fs::write(self.config_file(), change(config)).expect("written");
    }

    pub fn run(&mut self) {
        if let Err(output) = self.try_run() {
            panic!("the key server did not start:\n{output}");
        }
    }

    /// Starts it; what it said, when it ended before it was ready.
    pub fn try_run(&mut self) -> Result<(), String> {
        let before = self.log().len();
        let options = File::options()
            .create(true)
            .append(true)
            .open(self.log_file());
        let out = options.expect("the log can be written");
        let err = out.try_clone().expect("a handle can be cloned");
        let mut command = cli::command(&["kms", "serve", "--config"]);
        command.arg(self.config_file()).stdout(out).stderr(err);
        command.env("STRONGROOM_LOG", "trace").stdin(Stdio::null());
        let mut child = command.spawn().expect("the strongroom binary starts");
        let begun = Instant::now();
        loop {
            let output = self.log().split_off(before);
            if output.lines().any(|line| line == "ready") {
                self.child = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait().expect("our own child") {
                return Err(format!("{status}: {}", self.log().split_off(before)));
            }
            if begun.elapsed() > PATIENCE {
                drop(child.kill());
                panic!("no ready line:\n{output}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid is positive"), signal).expect("our own child");
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("the server runs");
        child.wait().expect("our own child")
    }

    /// One request on a connection of its own; an error when the connection is refused.
    pub fn call(
        &self,
        caller: Option<&Caller>,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> std::io::Result<Response> {
        let certificate = caller.map(|caller| &caller.certificate);
        let mut connection = Connection::open_as(self.address, certificate)?;
        let length = match body.is_empty() && method == "GET" {
            true => String::new(),
            false => format!("content-length: {}\r\n", body.len()),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: keys\r\n{length}\r\n");
        // It may answer before it has read everything.
        let sent = connection.send(head.as_bytes(), body);
        let head = connection
            .read_head()
            .map_err(|e| sent.err().unwrap_or(e))?;
        let mut body = Vec::new();
        connection.read_body(method, &head, |piece| body.extend_from_slice(piece))?;
        Ok(Response { head, body })
    }

    /// One request as the admin.
    pub fn ask(&self, method: &str, path: &str, body: &serde_json::Value) -> Response {
        let body = match body.is_null() {
            true => Vec::new(),
            false => body.to_string().into_bytes(),
        };
        let answer = self.call(Some(&self.admin), method, path, &body);
        answer.unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", self.log()))
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- log of the key server:\n{log}\n---");
        } else {
            assert!(!log.contains("panicked at"), "the server panicked:\n{log}");
        }
    }
}

/// A certificate with its key, and its identity, made by the command that is for that.
fn caller(home: &Path, name: &str) -> Caller {
    let (certificate, key) = (
        home.join(format!("{name}.crt")),
        home.join(format!("{name}.key")),
    );
    let mut make = cli::command(&["kms", "identity", "new", "localhost", "127.0.0.1"]);
    make.arg("--cert").arg(&certificate).arg("--key").arg(&key);
    let identity = cli::value(&cli::succeed(&mut make), "identity");
    let mut of = cli::command(&["kms", "identity", "of"]);
    assert_eq!(cli::succeed(of.arg(&certificate)).trim(), identity);
    Caller {
        identity,
        certificate: ClientCertificate::load(&certificate, &key),
    }
}
