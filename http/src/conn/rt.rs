//! What hyper asks of a runtime, answered by glommio: tasks, timers, and a stall clock.
//!
//! Everything here is bound to the thread it was made on. hyper wants its sleeps to be `Send`;
//! they are wrapped so that using one on another thread panics instead of racing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use glommio::timer::Timer;
use hyper::rt;
use send_wrapper::SendWrapper;

/// Spawns hyper's background futures (HTTP/2 streams) on this shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalTasks;

impl<F> rt::Executor<F> for LocalTasks
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        glommio::spawn_local(future).detach();
    }
}

/// hyper's timers on this shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalTimer;

impl rt::Timer for LocalTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(LocalSleep(SendWrapper::new(Timer::new(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep(deadline.saturating_duration_since(Instant::now()))
    }
}

struct LocalSleep(SendWrapper<Timer>);

impl Future for LocalSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *self.0).poll(cx).map(drop)
    }
}

impl rt::Sleep for LocalSleep {}

/// Measures how long a peer has made us wait.
///
/// Waiting is the common case of a busy socket and mostly short, so progress only forgets a time
/// stamp, and the one timer is moved when it fires too early.
#[derive(Debug)]
pub struct Stall {
    limit: Duration,
    since: Option<Instant>,
    timer: Option<Timer>,
}

impl Stall {
    /// A clock that fires after `limit` without progress.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            timer: None,
        }
    }

    /// The peer did something.
    pub fn progress(&mut self) {
        self.since = None;
    }

    /// Whether the wait has been too long, without asking to be woken.
    pub fn is_over(&self) -> bool {
        self.since
            .is_some_and(|since| since.elapsed() >= self.limit)
    }

    /// Call while waiting: ready once the wait has been too long.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Timer::new(self.limit));
        while Pin::new(&mut *timer).poll(cx).is_ready() {
            let left = self.limit.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            timer.reset(left);
        }
        Poll::Pending
    }
}

/// Lets all else run that is ready, what only the kernel knows to be ready included.
pub async fn turn() {
    // Tasks that wake each other never come to ask the kernel; a timer does, but those of timers are woken first.
    Timer::new(Duration::from_nanos(1)).await;
    futures_lite::future::yield_now().await;
}

/// Ends `future` after `limit`: `None` if it was not done by then.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    futures_lite::future::or(async { Some(future.await) }, async {
        Timer::new(limit).await;
        None
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::LocalExecutor;
    use std::future::poll_fn;

    #[test]
    fn stall_fires_only_without_progress() {
        LocalExecutor::default().run(async {
            let mut stall = Stall::new(Duration::from_millis(60));
            let start = Instant::now();
            for _ in 0..5 {
                let quiet = timeout(
                    Duration::from_millis(30),
                    poll_fn(|cx| stall.poll_stalled(cx)),
                )
                .await;
                assert!(quiet.is_none(), "fired although there was progress");
                stall.progress();
            }
            poll_fn(|cx| stall.poll_stalled(cx)).await;
            let waited = start.elapsed();
            assert!(waited >= Duration::from_millis(5 * 30 + 60), "{waited:?}");
        });
    }

    #[test]
    fn timeout_reports_both_ways() {
        LocalExecutor::default().run(async {
            assert_eq!(timeout(Duration::from_secs(5), async { 7 }).await, Some(7));
            let never = std::future::pending::<()>();
            assert!(timeout(Duration::from_millis(5), never).await.is_none());
        });
    }
}
