//! `record`: a run of the whole matrix against servers of its own, written to a file that can be compared with others.

#![allow(clippy::print_stdout)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use strongroom_benches::load::{Plan, Verb, prepare, run};
use strongroom_benches::machine::{Access, description, disk};
use strongroom_benches::measured::{Measured, parse_size, show_size};
use strongroom_tests::kes::Kes;
use strongroom_tests::{Config, Server, binary};

/// Starts servers, sealed and not, plain and TLS; puts and gets objects of each size; measures the disk beside them;
/// writes a Markdown file.
#[derive(Parser)]
struct Arguments {
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "4KiB,64KiB,1MiB,16MiB")]
    sizes: Vec<u64>,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long, default_value_t = 2)]
    shards: usize,
    /// Of each measurement.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Only what the modes of encryption cost, with keys from a stand-in for KES on the same machine.
    #[arg(long)]
    keys: bool,
}

/// A way to run the server and to ask it.
struct Setup {
    name: &'static str,
    config: Config,
    put_headers: &'static [(&'static str, &'static str)],
    get_headers: &'static [(&'static str, &'static str)],
    /// Where its keys come from, if not from itself.
    kes: Option<Arc<Kes>>,
}

const SSE_KMS: [(&str, &str); 2] = [
    ("x-amz-server-side-encryption", "aws:kms"),
    ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
];
const SSE_C: [(&str, &str); 3] = [
    ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
    (
        "x-amz-server-side-encryption-customer-key",
        "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    ),
    (
        "x-amz-server-side-encryption-customer-key-md5",
        "hRasmdxgYDKV3nvbahU1MA==",
    ),
];

/// The modes of encryption, under the embedded keystore and under KES.
fn key_setups(shards: usize) -> Vec<Setup> {
    let kes = Arc::new(Kes::start());
    let local = || Config::http().shards(shards);
    let setup = |name, config, put_headers| Setup {
        name,
        config,
        put_headers,
        get_headers: &[],
        kes: None,
    };
    let under_kes = |name, put_headers| Setup {
        kes: Some(Arc::clone(&kes)),
        ..setup(name, kes.configure(local()), put_headers)
    };
    vec![
        setup("SSE-S3, embedded keystore", local(), &[]),
        setup("SSE-KMS, embedded keystore", local(), &SSE_KMS[..1]),
        under_kes("SSE-S3, KES", &[]),
        under_kes("SSE-KMS, KES", &SSE_KMS[..1]),
        under_kes("SSE-KMS with bucket key, KES", &SSE_KMS),
        Setup {
            get_headers: &SSE_C,
            ..setup("SSE-C", local().args(["--allow-sse-c-without-tls"]), &SSE_C)
        },
    ]
}

fn setups(shards: usize) -> Vec<Setup> {
    let unsealed = ["--default-encryption", "none"];
    let opaque = ["--etag", "opaque"];
    let setup = |name, config: Config| Setup {
        name,
        config: config.shards(shards),
        put_headers: &[],
        get_headers: &[],
        kes: None,
    };
    vec![
        setup("sealed, plain HTTP", Config::http()),
        setup(
            "sealed, plain HTTP, opaque ETags",
            Config::http().args(opaque),
        ),
        setup("sealed, TLS", Config::tls()),
        setup(
            "sealed, plain HTTP, opaque ETags, no cache",
            Config::http().args(opaque).args(["--cache-size", "0"]),
        ),
        setup(
            "unsealed, plain HTTP, opaque ETags",
            Config::http().args(unsealed).args(opaque),
        ),
        setup("unsealed, plain HTTP", Config::http().args(unsealed)),
        setup("unsealed, TLS", Config::tls().args(unsealed)),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if cfg!(debug_assertions) {
        eprintln!("warning: a development build; use `cargo run --release` for numbers that count");
    }
    match record(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn record(arguments: &Arguments) -> Result<(), String> {
    let mut text = String::from("# Load on one server\n\n");
    for (name, value) in description() {
        writeln!(text, "- {name}: {value}").expect("in memory");
    }
    writeln!(
        text,
        "- {} shards, {} connections with one request in flight each, {} s per line, generator on the same cores\n\n\
         Requests are signed before the clock starts, with an unsigned payload. GB and MB are decimal. Server CPU is of the\n\
         whole process, user and kernel. PUT overwrites the same objects in turn.\n",
        arguments.shards, arguments.connections, arguments.seconds
    )
    .expect("in memory");
    let setups = match arguments.keys {
        true => key_setups(arguments.shards),
        false => setups(arguments.shards),
    };
    for setup in setups {
        println!("{}", setup.name);
        writeln!(text, "## {}\n\n{}", setup.name, lines(arguments, &setup)?).expect("in memory");
    }
    writeln!(text, "## The disk alone\n\n{}", disk_lines(arguments)?).expect("in memory");
    std::fs::write(&arguments.out, text).map_err(|e| format!("{}: {e}", arguments.out.display()))
}

fn lines(arguments: &Arguments, setup: &Setup) -> Result<String, String> {
    let mut table = Measured::TABLE_HEAD.to_owned();
    for &size in &arguments.sizes {
        // A fresh server for each size: what one left behind does not weigh on the next.
        let server = setup.config.clone().start();
        for (verb, name) in [(Verb::Put, "PUT"), (Verb::Get, "GET")] {
            let plan = plan(arguments, setup, &server, verb, size);
            prepare(&plan).map_err(|e| format!("{}, {name} of {size}: {e}", setup.name))?;
            let measured = run(&plan);
            let line = measured.table_line(name, &show_size(size));
            print!("{line}");
            table += &line;
        }
    }
    Ok(table)
}

fn plan(arguments: &Arguments, setup: &Setup, server: &Server, verb: Verb, size: u64) -> Plan {
    let owned = |headers: &[(&str, &str)]| {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        headers.iter().map(owned).collect()
    };
    let kes = setup.kes.clone();
    let share = (1 << 30) / size / arguments.connections as u64;
    Plan {
        endpoint: server.endpoint(),
        bucket: "load".into(),
        verb,
        size,
        connections: arguments.connections,
        duration: Duration::from_secs(arguments.seconds),
        warm_up: Duration::from_secs(1),
        keys: usize::try_from(share.clamp(2, 200)).expect("at most 200"),
        pid: Some(server.pid()),
        verify: false,
        put_headers: owned(setup.put_headers),
        get_headers: owned(setup.get_headers),
        key_calls: kes.map(|kes| {
            Arc::new(move || kes.data_key_calls() as u64) as Arc<dyn Fn() -> u64 + Send + Sync>
        }),
    }
}

fn disk_lines(arguments: &Arguments) -> Result<String, String> {
    let dir = tempfile::tempdir_in(binary::scratch()).map_err(|e| e.to_string())?;
    let mut table = format!(
        "`fio`, direct I/O, {} jobs, in the directory of the servers.\n\n\
         | access | block | operations/s | MB/s |\n| --- | ---: | ---: | ---: |\n",
        arguments.connections
    );
    for &size in &arguments.sizes {
        for (access, name) in [
            (Access::WriteSynced, "write, sync after each"),
            (Access::Write, "write"),
            (Access::Read, "random read"),
        ] {
            let found = disk(
                dir.path(),
                access,
                size,
                arguments.connections,
                arguments.seconds,
            )?;
            let line = format!(
                "| {name} | {} | {:.0} | {:.1} |\n",
                show_size(size),
                found.operations_per_second,
                found.megabytes_per_second
            );
            print!("{line}");
            table += &line;
        }
    }
    Ok(table)
}
