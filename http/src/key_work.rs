//! Data keys for threads that have none of their own: they ask the thread that has, and wait.
//!
//! In a server that is core 0. A command has a thread for it: with an executor where keys are at KES, which takes io_uring, and
//! without one where they are not.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::{mpsc, oneshot};
use futures_lite::future::block_on;
use futures_util::StreamExt;
use glommio::{LocalExecutorBuilder, Placement};
use strongroom_kms::Keys;

use crate::key_service::KeyService;
use crate::limits;

type Work = Box<dyn FnOnce(Rc<Keys>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The way to somebody's keys.
#[derive(Clone)]
pub struct AskKeys(mpsc::UnboundedSender<Work>);

/// Where those who have the keys find what is asked.
pub struct Asked(mpsc::UnboundedReceiver<Work>);

/// Both ends. What is asked before the keys are there waits for them.
pub fn channel() -> (AskKeys, Asked) {
    let (sender, receiver) = mpsc::unbounded();
    (AskKeys(sender), Asked(receiver))
}

impl AskKeys {
    /// Does `work` where the keys are, and waits for its result.
    pub fn ask<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        work: impl FnOnce(Rc<Keys>) -> F + Send + 'static,
    ) -> Result<T, String> {
        let (reply, result) = oneshot::channel();
        // Those who are gone drop the work, and with it the reply.
        let _ = self.0.unbounded_send(Box::new(move |keys| {
            let work = work(keys);
            Box::pin(async move {
                let _ = reply.send(work.await);
            })
        }));
        block_on(result).map_err(|_| "the keys' thread has ended".to_owned())
    }

    /// The keys of `service` on a thread of their own, which ends when nobody can ask any more.
    pub fn of_command(service: Arc<KeyService>) -> Result<AskKeys, String> {
        let (ask, asked) = channel();
        let failed = |e: &dyn std::fmt::Display| format!("a thread for keys cannot start: {e}");
        if service.is_at_kes() {
            LocalExecutorBuilder::new(Placement::Unbound)
                .name("keys")
                .io_memory(limits::RING_MEMORY_BYTES)
                .spawn(move || async move { asked.answer(Rc::new(service.keys())).await })
                .map_err(|e| failed(&e))?;
        } else {
            std::thread::Builder::new()
                .name("keys".into())
                .spawn(move || block_on(asked.answer(Rc::new(service.keys()))))
                .map_err(|e| failed(&e))?;
        }
        Ok(ask)
    }
}

impl Asked {
    /// Does what is asked, until nobody can ask any more.
    pub async fn answer(self, keys: Rc<Keys>) {
        self.0
            .for_each_concurrent(None, |work| work(Rc::clone(&keys)))
            .await;
    }
}
