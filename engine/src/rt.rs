//! What the engine asks of its runtime: tasks, timers, helper threads, the clock and random bytes.
//!
//! glommio and the operating system give them. Under test the simulation does, so that one seed replays one run.

#[cfg(not(test))]
pub use real::*;

#[cfg(test)]
pub use crate::sim::rt::*;

#[cfg(not(test))]
mod real {
    use std::cell::Cell;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    pub use futures_lite::future::block_on;
    pub use glommio::task::JoinHandle as Task;
    pub use glommio::timer::sleep;

    /// Runs a future on this core, also when the handle is dropped.
    pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
        glommio::spawn_local(future).detach()
    }

    thread_local! {
        /// What the helper threads of this core have not answered yet.
        static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
        static ENDED: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs something that may block on a helper thread of this core, to its end, also when nobody waits for it any more.
    pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        if ENDED.get() {
            // The executor goes, and with it whoever asks.
            return std::future::pending().await;
        }
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        let done = spawn(async {
            let done = glommio::executor().spawn_blocking(work).await;
            UNDER_WAY.set(UNDER_WAY.get() - 1);
            done
        });
        done.await.expect("its task is never cancelled")
    }

    /// The last thing an executor does: helper threads finish what they do, and begin nothing new. One of glommio's that is left
    /// behind at work panics when it wants to answer.
    pub async fn end_blocking() {
        ENDED.set(true);
        while UNDER_WAY.get() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
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
