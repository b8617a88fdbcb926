//! A server under test: started on a free port over a directory of its own, watched, stopped in each of the ways
//! a server stops.
//!
//! When it is dropped after a test that held, its log must show no panic; after one that did not, the log is printed.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::{Client, Endpoint};
use crate::sigv4::Credentials;
use crate::{binary, procfs};

/// Credentials that the tests hand to the server by its environment, and then look for on disk and in logs.
pub const ROOT_USER: &str = "e2e-root-user";
pub const ROOT_PASSWORD: &str = "e2e-root-password-Zq8vT3";
pub const REGION: &str = "us-east-1";

const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Tls,
}

/// How to start a server.
#[derive(Clone)]
pub struct Config {
    scheme: Scheme,
    shards: usize,
    args: Vec<String>,
    env: Vec<(String, String)>,
    root: Option<(String, String)>,
    data_dir: Option<PathBuf>,
    /// Those of a store on several drives, in the order given.
    data_dirs: Vec<PathBuf>,
    port: Option<u16>,
}

/// A server that would not start: its exit status and all it said.
#[derive(Debug)]
pub struct Refused {
    pub status: ExitStatus,
    pub output: String,
}

pub struct Server {
    config: Config,
    address: SocketAddr,
    data_dir: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    // Last, so that it goes after the process that writes into it.
    home: Option<TempDir>,
}

impl Config {
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            shards: 2,
            args: Vec::new(),
            env: Vec::new(),
            root: Some((ROOT_USER.into(), ROOT_PASSWORD.into())),
            data_dir: None,
            data_dirs: Vec::new(),
            port: None,
        }
    }

    pub fn http() -> Self {
        Self::new(Scheme::Http)
    }

    pub fn tls() -> Self {
        Self::new(Scheme::Tls)
    }

    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Gives the server no root credentials, so that it makes its own.
    pub fn without_credentials(mut self) -> Self {
        self.root = None;
        self
    }

    /// Uses this directory instead of a fresh one; it outlives the server.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = Some(dir.to_owned());
        self
    }

    /// Uses these directories, one on each drive.
    pub fn data_dirs(mut self, dirs: &[PathBuf]) -> Self {
        self.data_dirs = dirs.to_vec();
        self
    }

    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(r) => panic!("the server did not start ({}):\n{}", r.status, r.output),
        }
    }

    /// Starts the server; an error when it exits before it is ready.
    pub fn try_start(self) -> Result<Server, Refused> {
        let home = tempfile::Builder::new()
            .prefix("server-")
            .tempdir_in(binary::scratch())
            .expect("the scratch directory is writable");
        let data_dir = self.data_dir.clone();
        let data_dir = data_dir.or_else(|| self.data_dirs.first().cloned());
        let data_dir = data_dir.unwrap_or_else(|| home.path().join("data"));
        let port = self.port.unwrap_or_else(free_port);
        let mut server = Server {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            log: home.path().join("server.log"),
            config: self,
            data_dir,
            child: None,
            home: Some(home),
        };
        match server.spawn(is_ready_line) {
            Ok(()) => Ok(server),
            Err(refused) => Err(refused),
        }
    }
}

impl Server {
    pub fn pid(&self) -> u32 {
        let child = self.child.as_ref().expect("the server runs");
        child.id()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn scheme(&self) -> Scheme {
        self.config.scheme
    }

    /// `http://127.0.0.1:PORT` or `https://…`.
    pub fn endpoint_url(&self) -> String {
        let scheme = match self.config.scheme {
            Scheme::Http => "http",
            Scheme::Tls => "https",
        };
        format!("{scheme}://{}", self.address)
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The certificate that clients are told to trust.
    pub fn certificate(&self) -> PathBuf {
        self.data_dir.join("certs/public.crt")
    }

    pub fn endpoint(&self) -> Endpoint {
        let (access_key, secret_key) = self.credentials();
        Endpoint {
            address: self.address,
            tls: self.config.scheme == Scheme::Tls,
            credentials: Credentials {
                access_key,
                secret_key,
                region: REGION.into(),
            },
        }
    }

    pub fn credentials(&self) -> (String, String) {
        let given = self.config.root.clone();
        given.unwrap_or_else(|| generated_credentials(&self.data_dir))
    }

    pub fn client(&self) -> Client {
        Client::new(self.endpoint())
    }

    /// All it has said so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn resident_bytes(&self) -> u64 {
        procfs::resident_bytes(self.pid())
    }

    /// `kill -9`, and gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// SIGTERM; returns how it ended and after how long.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::TERM);
        (self.wait(), start.elapsed())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid is positive"), signal).expect("our own child");
    }

    /// Waits for the end of a process that was told to stop.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                return status;
            }
            if start.elapsed() > STOP_PATIENCE {
                let killed = child.kill();
                panic!(
                    "the server did not stop within {STOP_PATIENCE:?} (killed: {killed:?}):\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again on the same port and directory, after it was stopped.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server still runs");
        self.start_until(is_ready_line);
    }

    /// As [`Server::start_again`], where its store does not open: it is ready once it does.
    pub fn start_locked(&mut self) {
        assert!(self.child.is_none(), "the server still runs");
        self.start_until(is_locked_line);
    }

    fn start_until(&mut self, is_last: impl Fn(&str) -> bool) {
        if let Err(r) = self.spawn(is_last) {
            panic!(
                "the server did not start again ({}):\n{}",
                r.status, r.output
            );
        }
    }

    /// Changes what the next start is told.
    pub fn configure(&mut self, change: impl FnOnce(Config) -> Config) {
        self.config = change(self.config.clone());
    }

    /// SIGTERM, a clean exit, and a start.
    pub fn restart(&mut self) {
        let (status, _) = self.terminate();
        assert!(status.success(), "{status}:\n{}", self.log());
        self.start_again();
    }

    /// The command line that started it, for starting a rival.
    pub fn command(&self) -> Command {
        let config = &self.config;
        let mut command = Command::new(binary::path());
        for (name, _) in std::env::vars_os() {
            let ours = name.to_str().is_some_and(|n| {
                n.starts_with("STRONGROOM_") || n.starts_with("MINIO_") || n == "RUST_LOG"
            });
            if ours {
                command.env_remove(name);
            }
        }
        command.arg("serve");
        match &config.data_dirs[..] {
            [] => command.arg(&self.data_dir),
            several => command.args(several),
        };
        command.arg("--address").arg(self.address.to_string());
        command.arg("--shards").arg(config.shards.to_string());
        if config.scheme == Scheme::Http {
            command.arg("--no-tls");
        }
        if let Some((user, password)) = &config.root {
            command.env("STRONGROOM_ROOT_USER", user);
            command.env("STRONGROOM_ROOT_PASSWORD", password);
        }
        command.args(&config.args);
        command.envs(config.env.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::null());
        command
    }

    fn spawn(&mut self, is_last: impl Fn(&str) -> bool) -> Result<(), Refused> {
        let before = self.log().len();
        let open = || -> io::Result<File> {
            let options = File::options().create(true).append(true).open(&self.log)?;
            Ok(options)
        };
        let out = open().expect("the log can be written");
        let err = out.try_clone().expect("a handle can be cloned");
        let mut command = self.command();
        let child = command.stdout(out).stderr(err).spawn();
        let mut child = child.expect("the strongroom binary starts");
        let start = Instant::now();
        loop {
            let output = self.log().split_off(before);
            if output.lines().any(&is_last) {
                self.child = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait().expect("our own child") {
                // Read again: it may have spoken between the look at its log and its end.
                let output = self.log().split_off(before);
                return Err(Refused { status, output });
            }
            if start.elapsed() > START_PATIENCE {
                let killed = child.kill();
                panic!("no such line within {START_PATIENCE:?} (killed: {killed:?}):\n{output}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        let log = self.log();
        if std::thread::panicking() {
            let from = log.len().saturating_sub(8000);
            let tail = log.get(from..).unwrap_or(&log);
            eprintln!("--- log of the server:\n{tail}\n---");
            if std::env::var_os("STRONGROOM_TEST_KEEP").is_some()
                && let Some(home) = self.home.take()
            {
                eprintln!("kept: {}", home.keep().display());
            }
        } else {
            assert!(!log.contains("panicked at"), "the server panicked:\n{log}");
        }
    }
}

/// The last line of a start.
fn is_ready_line(line: &str) -> bool {
    line.trim_start().starts_with("ready")
}

/// What a server says that serves nothing yet.
fn is_locked_line(line: &str) -> bool {
    line.contains("the store is locked") || line.contains("the root key is not on this machine")
}

/// What the server wrote for itself: the first two words that are no names.
fn generated_credentials(data_dir: &Path) -> (String, String) {
    let file = data_dir.join("root-credentials");
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|e| panic!("reading {}: {e}", file.display()));
    let values: Vec<&str> = text
        .lines()
        .filter(|l| !l.trim_start().starts_with(['#', '[']))
        .filter_map(|l| l.split_once(['=', ':']))
        .map(|(_, v)| v.trim())
        .collect();
    match values[..] {
        [user, password, ..] => (user.to_owned(), password.to_owned()),
        _ => panic!("{} holds no user and password", file.display()),
    }
}

/// A port that nobody uses now. It lies below those that the kernel gives to outgoing connections, so that a server
/// that is stopped for a moment finds it free again.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    for _ in 0..1000 {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {first} on is free")
}
