//! PUT and GET of each size over each number of connections, against a setup.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use strongroom_tests::{Server, metrics};

use super::setups::{Pairs, Setup};
use super::{Row, Rows, progress};
use crate::load::{Plan, Verb, prepare, run};

/// Bytes of the objects that are read: small enough to fit in the cache of a server with 4 GiB of memory or more.
const READ_BYTES: u64 = 512 << 20;
/// Bytes of the objects that are written, in turn, so that a disk holds them all.
const WRITTEN_BYTES: u64 = 1 << 30;
/// Objects per connection.
const KEYS_MAX: u64 = 200;

pub struct Lengths {
    pub sizes: Vec<u64>,
    pub connections: Vec<usize>,
    /// Of each measurement.
    pub seconds: u64,
}

/// Measures and adds the rows. Each size has a fresh server: what one left behind does not weigh on the next.
pub fn measure(setup: &Setup, lengths: &Lengths, rows: &mut Rows) -> Result<(), String> {
    for &size in &lengths.sizes {
        let server = setup.config.clone().start();
        for verb in [Verb::Put, Verb::Get] {
            for &connections in &lengths.connections {
                let plan = plan(setup, &server, verb, size, connections, lengths.seconds);
                let at = |e: io::Error| format!("{}, {verb:?} of {size}: {e}", setup.name);
                prepare(&plan).map_err(at)?;
                let held = || metrics::value(&server, "strongroom_cache_bytes").ok()?;
                let before = held();
                let mut measured = run(&plan);
                // What the preparation overwrote leaves during the measurement.
                measured.server_cache = held().max(before);
                let row = Row {
                    setup: setup.name,
                    verb,
                    size,
                    connections,
                    measured,
                };
                progress(&format!("{}: {}", setup.name, row.line()));
                rows.0.push(row);
            }
        }
    }
    Ok(())
}

fn plan(
    setup: &Setup,
    server: &Server,
    verb: Verb,
    size: u64,
    connections: usize,
    seconds: u64,
) -> Plan {
    let owned = |pairs: Pairs| {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    };
    let total = match verb {
        Verb::Put => WRITTEN_BYTES,
        Verb::Get => READ_BYTES,
    };
    let objects = (total / size).max(1);
    let owners = usize::try_from(objects).map_or(connections, |n| n.min(connections));
    let keys = (objects / owners as u64).clamp(1, KEYS_MAX);
    let kes = setup.kes.clone();
    Plan {
        endpoint: server.endpoint(),
        bucket: "load".into(),
        verb,
        size,
        connections,
        owners,
        duration: Duration::from_secs(seconds),
        warm_up: Duration::from_millis(500),
        keys: usize::try_from(keys).expect("at most KEYS_MAX"),
        pid: Some(server.pid()),
        verify: false,
        put_headers: owned(setup.put_headers),
        get_headers: owned(setup.get_headers),
        key_calls: kes.map(|kes| {
            Arc::new(move || kes.data_key_calls() as u64) as Arc<dyn Fn() -> u64 + Send + Sync>
        }),
    }
}
