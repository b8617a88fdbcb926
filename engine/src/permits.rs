//! Permits of one core: so many may go on at once, the others wait in turn.
//!
//! A permit that is given to somebody who went away goes on to the next who waits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use futures_channel::oneshot;

/// How many may go on, and who waits.
pub struct Permits {
    free: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<Permit>>>,
}

/// The right to go on; dropping it gives it back.
pub struct Permit(Option<Rc<Permits>>);

impl Permits {
    /// As many permits as `count`.
    pub fn new(count: usize) -> Rc<Self> {
        Rc::new(Self {
            free: Cell::new(count),
            waiting: RefCell::default(),
        })
    }

    /// A permit, as soon as there is one.
    pub async fn acquire(self: &Rc<Self>) -> Permit {
        if let Some(permit) = self.try_acquire() {
            return permit;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        receiver
            .await
            .expect("whoever waits keeps the permits alive")
    }

    /// A permit, if there is one.
    pub fn try_acquire(self: &Rc<Self>) -> Option<Permit> {
        // Nobody waits while a permit is free.
        let left = self.free.get().checked_sub(1)?;
        self.free.set(left);
        Some(Permit(Some(Rc::clone(self))))
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.get()
    }

    fn give_back(self: Rc<Self>) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(next) = next else {
                self.free.set(self.free.get() + 1);
                return;
            };
            match next.send(Permit(Some(Rc::clone(&self)))) {
                Ok(()) => return,
                // It went away; its permit must not come back here by being dropped.
                Err(mut permit) => permit.0 = None,
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permits) = self.0.take() {
            permits.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn so_many_and_the_rest_in_turn() {
        let permits = Permits::new(2);
        let mut held: Vec<Permit> = Vec::new();
        for _ in 0..2 {
            match poll(pin!(permits.acquire())) {
                Poll::Ready(permit) => held.push(permit),
                Poll::Pending => panic!("free"),
            }
        }
        let mut first = pin!(permits.acquire());
        let mut second = pin!(permits.acquire());
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        held.pop();
        assert!(poll(second.as_mut()).is_pending(), "not before its turn");
        let Poll::Ready(permit) = poll(first.as_mut()) else {
            panic!("its turn")
        };
        drop(permit);
        assert!(poll(second.as_mut()).is_ready());
        drop(held);
        assert_eq!(permits.free.get(), 2);
    }

    #[test]
    fn a_permit_for_somebody_who_went_away_is_not_lost() {
        let permits = Permits::new(1);
        let Poll::Ready(held) = poll(pin!(permits.acquire())) else {
            panic!("free")
        };
        let mut last = Box::pin(permits.acquire());
        {
            let mut gone: Vec<_> = (0..10_000).map(|_| Box::pin(permits.acquire())).collect();
            for one in &mut gone {
                assert!(poll(one.as_mut()).is_pending());
            }
            assert!(poll(last.as_mut()).is_pending());
        }
        // One goes away after it was given the permit, and before it knows.
        let mut given = Box::pin(permits.acquire());
        assert!(poll(given.as_mut()).is_pending());
        drop(held);
        let Poll::Ready(held) = poll(last.as_mut()) else {
            panic!("its turn")
        };
        drop(held);
        drop(given);
        assert_eq!(permits.free.get(), 1);
    }
}
