//! Ends a shard's connections in order: told once, each at its own pace, awaited together.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The state that a shard's accept loop and its connections share.
#[derive(Clone, Default)]
pub struct Drain(Rc<State>);

#[derive(Default)]
struct State {
    draining: Cell<bool>,
    connections: Cell<usize>,
    next_id: Cell<u64>,
    /// Connections, and whoever waits for the drain to begin.
    for_begin: RefCell<HashMap<u64, Waker>>,
    /// Whoever waits for connections to go. Apart, so that one that ends does not wake all others.
    for_room: RefCell<HashMap<u64, Waker>>,
}

impl Drain {
    /// A shard that serves.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on no new request is taken: idle connections close, busy ones after their response.
    pub fn begin(&self) {
        self.0.draining.set(true);
        wake_all(&self.0.for_begin);
    }

    /// Whether [`Drain::begin`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.0.connections.get()
    }

    /// Counts a connection in, until the guard is dropped.
    pub fn guard(&self) -> DrainGuard {
        let state = self.0.clone();
        state.connections.set(state.connections.get() + 1);
        DrainGuard(state)
    }

    /// Waits for [`Drain::begin`].
    pub async fn begun(&self) {
        let draining = || self.0.draining.get();
        wait(&self.0.next_id, &self.0.for_begin, draining).await;
    }

    /// Waits until fewer than `limit` connections are open.
    pub async fn below(&self, limit: usize) {
        let room = || self.0.connections.get() < limit;
        wait(&self.0.next_id, &self.0.for_room, room).await;
    }
}

/// One connection counted by a [`Drain`].
pub struct DrainGuard(Rc<State>);

impl DrainGuard {
    /// Waits for [`Drain::begin`].
    pub async fn begun(&self) {
        let draining = || self.0.draining.get();
        wait(&self.0.next_id, &self.0.for_begin, draining).await;
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        wake_all(&self.0.for_room);
    }
}

type Waiting = RefCell<HashMap<u64, Waker>>;

fn wake_all(waiting: &Waiting) {
    // Taken out first: waking may run anything.
    let waiting = std::mem::take(&mut *waiting.borrow_mut());
    waiting.into_values().for_each(Waker::wake);
}

async fn wait(next_id: &Cell<u64>, waiting: &Waiting, done: impl Fn() -> bool) {
    let id = next_id.get();
    next_id.set(id + 1);
    let waiter = Waiter { id, waiting };
    poll_fn(|cx| waiter.poll(cx, &done)).await;
}

struct Waiter<'a> {
    id: u64,
    waiting: &'a Waiting,
}

impl Waiter<'_> {
    fn poll(&self, cx: &mut Context<'_>, done: impl Fn() -> bool) -> Poll<()> {
        if done() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match waiting.get_mut(&self.id) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => drop(waiting.insert(self.id, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};
    use std::pin::pin;

    #[test]
    fn connections_hear_of_it_and_are_awaited() {
        block_on(async {
            let drain = Drain::new();
            let guards = [drain.guard(), drain.guard()];
            {
                let mut heard = pin!(guards[0].begun());
                assert!(poll_once(heard.as_mut()).await.is_none());
                drain.begin();
                heard.await;
            }
            let mut empty = pin!(drain.below(1));
            assert!(poll_once(empty.as_mut()).await.is_none());
            drop(guards);
            empty.await;
            assert_eq!(drain.connections(), 0);
            assert!(drain.0.for_begin.borrow().is_empty());
            assert!(drain.0.for_room.borrow().is_empty());
        });
    }
}
