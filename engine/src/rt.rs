//! What the engine asks of its runtime: tasks, timers, helper threads, the clock and random bytes.
//!
//! glommio and the operating system give them. Under test the simulation does, so that one seed replays one run.

#[cfg(not(test))]
pub use real::*;

#[cfg(test)]
pub use crate::sim::rt::*;

#[cfg(not(test))]
mod real {
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    pub use futures_lite::future::block_on;
    pub use glommio::task::JoinHandle as Task;
    pub use glommio::timer::sleep;

    /// Runs a future on this core, also when the handle is dropped.
    pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
        glommio::spawn_local(future).detach()
    }

    /// Runs something that may block on a helper thread.
    pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        glommio::executor().spawn_blocking(work).await
    }

    pub fn now() -> Instant {
        Instant::now()
    }

    /// Milliseconds since 1970.
    pub fn unix_millis() -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64)
    }

    /// Random bytes from the operating system.
    pub fn random(out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system gives random bytes");
    }
}
