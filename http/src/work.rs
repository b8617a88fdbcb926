//! Work that other threads hand to the cores of an open store, and whose results they wait for.

use std::pin::Pin;
use std::rc::Rc;

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use strongroom_engine::Drives;

type Work = Box<dyn FnOnce(Rc<Drives>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The shards, as other threads reach them.
pub struct Shards(Vec<mpsc::UnboundedSender<Work>>);

/// Where one shard finds its work.
pub struct Inbox(mpsc::UnboundedReceiver<Work>);

/// The way to so many shards. What is handed over before a shard runs waits for it.
pub fn channels(shards: usize) -> (Shards, Vec<Inbox>) {
    let (senders, inboxes) = (0..shards)
        .map(|_| {
            let (sender, receiver) = mpsc::unbounded();
            (sender, Inbox(receiver))
        })
        .unzip();
    (Shards(senders), inboxes)
}

impl Shards {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Begins `work` on a shard. The result never comes where the shard stops first.
    pub fn begin<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        shard: usize,
        work: impl FnOnce(Rc<Drives>) -> F + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, result) = oneshot::channel();
        // A shard that is gone drops the work, and with it the reply.
        let _ = self.0[shard].unbounded_send(Box::new(move |drives| {
            let work = work(drives);
            Box::pin(async move {
                // Whoever asked may be gone.
                let _ = reply.send(work.await);
            })
        }));
        result
    }
}

impl Inbox {
    /// Does what comes in until `stop`, and then what was begun.
    pub async fn work(self, drives: Rc<Drives>, stop: impl Future<Output = ()>) {
        self.0
            .take_until(stop)
            .for_each_concurrent(None, |work| work(Rc::clone(&drives)))
            .await;
    }
}
