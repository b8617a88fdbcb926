//! `load`: requests of one kind against a running server, and what they cost on both sides.

#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use strongroom_benches::load::{Plan, Verb, prepare, run};
use strongroom_benches::measured::{parse_size, show_size};
use strongroom_tests::client::Endpoint;
use strongroom_tests::sigv4::Credentials;

/// Puts or gets objects of one size for some seconds and reports rates, latencies, errors and CPU.
#[derive(Parser)]
struct Arguments {
    verb: Kind,
    #[arg(long, default_value = "127.0.0.1:9000")]
    address: SocketAddr,
    /// Speak TLS, whatever the certificate.
    #[arg(long)]
    tls: bool,
    #[arg(long, env = "STRONGROOM_ROOT_USER")]
    access_key: String,
    #[arg(long, env = "STRONGROOM_ROOT_PASSWORD", hide_env_values = true)]
    secret_key: String,
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// Made if it is not there; its objects under `SIZE/` are overwritten.
    #[arg(long, default_value = "load")]
    bucket: String,
    #[arg(long, default_value = "1MiB", value_parser = parse_size)]
    size: u64,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Objects per connection.
    #[arg(long, default_value_t = 32)]
    keys: usize,
    /// Process of the server, if it is on this machine.
    #[arg(long)]
    pid: Option<u32>,
    /// Compare every byte that is read.
    #[arg(long)]
    verify: bool,
    /// A further header of every PUT, `name: value`; may be repeated.
    #[arg(long, value_parser = parse_header)]
    put_header: Vec<(String, String)>,
    /// A further header of every GET, `name: value`; may be repeated.
    #[arg(long, value_parser = parse_header)]
    get_header: Vec<(String, String)>,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected `name: value`")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Put,
    Get,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = Plan {
        endpoint: Endpoint {
            address: arguments.address,
            tls: arguments.tls,
            credentials: Credentials {
                access_key: arguments.access_key,
                secret_key: arguments.secret_key,
                region: arguments.region,
            },
        },
        bucket: arguments.bucket,
        verb: match arguments.verb {
            Kind::Put => Verb::Put,
            Kind::Get => Verb::Get,
        },
        size: arguments.size,
        connections: arguments.connections.max(1),
        owners: arguments.connections.max(1),
        duration: Duration::from_secs(arguments.seconds.max(1)),
        warm_up: Duration::from_secs(arguments.warm_up),
        keys: arguments.keys.max(1),
        pid: arguments.pid,
        verify: arguments.verify,
        put_headers: arguments.put_header,
        get_headers: arguments.get_header,
        key_calls: None,
    };
    if let Err(e) = prepare(&plan) {
        eprintln!("{}: {e}", plan.endpoint.address);
        return ExitCode::FAILURE;
    }
    let measured = run(&plan);
    println!(
        "{:?} of {}, {} connections, {}",
        plan.verb,
        show_size(plan.size),
        plan.connections,
        if plan.endpoint.tls { "TLS" } else { "plain" }
    );
    print!("{}", measured.summary());
    if measured.errors > 0 || measured.latencies.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
