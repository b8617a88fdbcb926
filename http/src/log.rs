//! Logs, and what must never be in them.
//!
//! Libraries below us log whole requests when asked to be chatty, keys of customers included. So
//! the choice of the operator (`STRONGROOM_LOG`, or `RUST_LOG`) only ranges over our own modules; of the libraries a few
//! may warn, and all others are silent whatever the choice is.

use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;

/// Libraries whose warnings are of use and hold nothing of a request.
const MAY_WARN: [&str; 3] = ["glommio", "fjall", "lsm_tree"];

/// Sends logs to standard error, as the environment chooses; `info` if it does not.
pub fn init() {
    let set = ["STRONGROOM_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|choice| !choice.is_empty()));
    let choice = set.as_deref().unwrap_or("info");
    let ansi = std::io::stderr().is_terminal();
    let subscriber = subscriber(choice, std::io::stderr, ansi);
    // Fails only if there is one already; then that one stays.
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// A subscriber that writes what `choice` selects of what is allowed.
pub fn subscriber<W>(choice: &str, writer: W, ansi: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::registry()
        .with(filter_fn(allowed))
        .with(EnvFilter::new(choice))
        .with(fmt::layer().with_writer(writer).with_ansi(ansi))
}

fn allowed(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    root == "strongroom"
        || root.starts_with("strongroom_")
        || (MAY_WARN.contains(&root) && *metadata.level() <= Level::WARN)
}

#[cfg(test)]
pub(crate) mod testing {
    use std::io;
    use std::sync::{Arc, Mutex};

    /// What was logged.
    #[derive(Clone, Default)]
    pub struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_modules_are_heard() {
        let log = testing::Log::default();
        let writer = log.clone();
        let subscriber = subscriber("trace", move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "s3s::ops", "one");
            tracing::error!(target: "h2::codec", "two");
            tracing::info!(target: "glommio", "three");
            tracing::trace!(target: "strongroom_engine::index", "four");
            tracing::warn!(target: "lsm_tree::tree", "five");
            tracing::error!(target: "strongroomish", "six");
        });
        let text = log.text();
        for heard in ["four", "five"] {
            assert!(text.contains(heard), "{text}");
        }
        for silent in ["one", "two", "three", "six"] {
            assert!(!text.contains(silent), "{text}");
        }
    }
}
