//! `record`: a run of everything against servers of its own, written to a file that can be compared with others, and a plot.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use strongroom_benches::machine::description;
use strongroom_benches::measured::{parse_duration, parse_size, show_size};
use strongroom_benches::record::marks::{self, Run};
use strongroom_benches::record::million::million;
use strongroom_benches::record::plot::plot;
use strongroom_benches::record::setups::{self, Setup};
use strongroom_benches::record::soak::soak;
use strongroom_benches::record::surroundings::{
    self, disk_table, disks, kernel, sockets, sockets_table,
};
use strongroom_benches::record::sweep::{Lengths, measure};
use strongroom_benches::record::{Rows, marks::LARGE, progress};
use strongroom_tests::binary;

/// Starts servers, sealed and not, plain and TLS; puts and gets objects of each size; measures the disk, bare sockets and the
/// cipher beside them; writes a Markdown file, and a plot next to it.
#[derive(Parser)]
struct Arguments {
    /// The file to write, `NAME.md`; the plot is `NAME.svg`.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "4KiB,64KiB,1MiB,16MiB,64MiB")]
    sizes: Vec<u64>,
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,32,64", value_parser = positive)]
    connections: Vec<usize>,
    /// Connections at which setups, disk and sockets are compared.
    #[arg(long, default_value = "16", value_parser = positive)]
    compare_at: usize,
    #[arg(long, default_value_t = 2)]
    shards: usize,
    /// Of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only these sections.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Also very many small objects: listing, deleting, starting after a crash.
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "1000000", value_parser = clap::value_parser!(u64).range(1..))]
    million: Option<u64>,
    /// Only a long mixed load of this length (`30m`), with memory and open files by the minute.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = ["million", "only", "keys"])]
    soak: Option<Duration>,
    /// Only what the modes of encryption cost, with keys from a stand-in for KES on the same machine.
    #[arg(long, conflicts_with = "only")]
    keys: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Sizes and connections, plain and TLS.
    Sweep,
    /// Sealed and unsealed, MD5 and opaque ETags, with and without the cache.
    Compare,
    /// One shard against all.
    Cores,
    Disk,
    Sockets,
    Cipher,
    /// No more than what `--million` adds.
    Million,
}

fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&n| n > 0);
    number.ok_or_else(|| "must be a number of at least 1".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if cfg!(debug_assertions) {
        eprintln!("warning: a development build; use `cargo run --release` for numbers that count");
    }
    match record(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what was found is as it must be; only a soak has a say in that.
fn record(arguments: &Arguments) -> Result<bool, String> {
    if let Some(length) = arguments.soak {
        let outcome = soak(length, arguments.shards)?;
        let text = format!("{}{}", head("A long mixed load", arguments), outcome.text);
        write(&arguments.out, &text)?;
        return Ok(outcome.flat);
    }
    let mut text = head("Load on one server", arguments);
    writeln!(
        text,
        "One request in flight per connection, {} s per line (longer where the slowest request needs it), generator on the same cores. Requests \
         are signed before the clock starts, with an unsigned payload. GB and MB are decimal. Server CPU is of the whole process, \
         user and kernel; memory is the most in the window. PUT overwrites the same objects in turn; GET reads at most \
         512 MiB of objects, each read once before, so a cache has them. What the cache held is the more of before and after.\n",
        arguments.seconds
    )
    .expect("in memory");
    if arguments.keys {
        let mut rows = Rows::default();
        measure_all(
            &setups::keys(arguments.shards),
            &compared(arguments),
            &mut rows,
        )?;
        text += &rows.tables();
    } else {
        text += &sections(arguments)?;
    }
    write(&arguments.out, &text)?;
    Ok(true)
}

fn sections(arguments: &Arguments) -> Result<String, String> {
    let asked = |section| arguments.only.is_empty() || arguments.only.contains(&section);
    let mut rows = Rows::default();
    if asked(Section::Sweep) {
        let mut connections = arguments.connections.clone();
        connections.push(arguments.compare_at);
        connections.sort_unstable();
        connections.dedup();
        let lengths = Lengths {
            connections,
            ..compared(arguments)
        };
        measure_all(&setups::common(arguments.shards), &lengths, &mut rows)?;
    }
    if asked(Section::Compare) {
        let setups = setups::compared(arguments.shards);
        measure_all(&setups, &compared(arguments), &mut rows)?;
    }
    if asked(Section::Cores) {
        let lengths = Lengths {
            sizes: ends_of(&arguments.sizes),
            ..compared(arguments)
        };
        measure_all(&[setups::one_shard()], &lengths, &mut rows)?;
    }
    let at = arguments.compare_at;
    let disk_rows = if asked(Section::Disk) {
        let dir = tempfile::tempdir_in(binary::scratch()).map_err(|e| e.to_string())?;
        disks(dir.path(), &arguments.sizes, at, arguments.seconds)?
    } else {
        Vec::new()
    };
    let mut socket_rows = Vec::new();
    if asked(Section::Sockets) {
        for &size in &arguments.sizes {
            progress(&format!("bare sockets: {}", show_size(size)));
            let found = sockets(size, at, Duration::from_secs(arguments.seconds));
            socket_rows.push(found.map_err(|e| format!("bare sockets: {e}"))?);
        }
    }
    let kernel = asked(Section::Cipher).then(kernel);
    let many = match arguments.million {
        Some(count) => Some((count, million(count, arguments.shards)?)),
        None => None,
    };

    let mut text = String::new();
    let run = Run {
        rows: &rows,
        disks: &disk_rows,
        sockets: &socket_rows,
        kernel,
        connections: at,
    };
    if !rows.0.is_empty() {
        let file = arguments.out.with_extension("svg");
        let below = description()
            .into_iter()
            .filter(|(name, _)| ["processor", "cores", "revision", "date"].contains(name))
            .map(|(name, value)| format!("{name}: {value}"))
            .collect::<Vec<_>>()
            .join(" · ");
        write(&file, &plot(&below, &rows, &disk_rows, &socket_rows, at))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        writeln!(text, "![throughput and CPU by size]({name})\n").expect("in memory");
    }
    let mut section = |title: &str, body: &str| {
        writeln!(text, "## {title}\n\n{body}").expect("in memory");
    };
    if !rows.0.is_empty() {
        section(
            "Marks",
            &format!(
                "From the tables below, at {at} connections where nothing else stands; large is {} and more.\n\n{}",
                show_size(LARGE),
                marks::table(&run)
            ),
        );
        section("Servers", &rows.tables());
    }
    if let Some((count, table)) = many {
        section(&format!("{count} objects"), &table);
    }
    if !disk_rows.is_empty() {
        let told = format!("`fio`, direct I/O, {at} jobs, in the directory of the servers.\n\n");
        section("The disk alone", &(told + &disk_table(&disk_rows)));
    }
    if !socket_rows.is_empty() {
        let told = format!(
            "Requests of 512 bytes and answers over loopback, {at} connections, a thread for each end; writes of at most 256 KiB from memory.\n\n"
        );
        section("Bare sockets", &(told + &sockets_table(&socket_rows)));
    }
    if let Some(kernel) = kernel {
        section("The cipher alone", &surroundings::Kernel::table(&kernel));
    }
    Ok(text)
}

fn measure_all(setups: &[Setup], lengths: &Lengths, rows: &mut Rows) -> Result<(), String> {
    setups.iter().try_for_each(|s| measure(s, lengths, rows))
}

/// Each size over the connections at which setups are compared.
fn compared(arguments: &Arguments) -> Lengths {
    Lengths {
        sizes: arguments.sizes.clone(),
        connections: vec![arguments.compare_at],
        seconds: arguments.seconds,
    }
}

/// The smallest and what stands for the large ones.
fn ends_of(sizes: &[u64]) -> Vec<u64> {
    let least = sizes.iter().min();
    let large = sizes.iter().find(|&&s| s == LARGE).or(sizes.iter().max());
    let mut ends: Vec<u64> = least.into_iter().chain(large).copied().collect();
    ends.dedup();
    ends
}

/// Title and machine.
fn head(title: &str, arguments: &Arguments) -> String {
    let mut text = format!("# {title}\n\n");
    for (name, value) in description() {
        writeln!(text, "- {name}: {value}").expect("in memory");
    }
    writeln!(text, "- shards: {}", arguments.shards).expect("in memory");
    let command: Vec<String> = std::env::args().skip(1).collect();
    writeln!(text, "- command: `record {}`\n", command.join(" ")).expect("in memory");
    text
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}
