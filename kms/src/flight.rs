//! One flight per cold key: who asks for what is being fetched already waits for that answer.
//!
//! A flight belongs to one core. Its leader does the work; when it ends, everyone who waited gets the
//! outcome of it: a failure as it is, a success by looking again. A leader that is dropped half-way (its
//! client went away) leaves no outcome, and one of those who waited becomes the next leader.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::hash::Hash;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::error::Error;

/// The flights of one core, by what they fetch.
pub(crate) struct Flights<K> {
    under_way: RefCell<HashMap<K, Rc<RefCell<Flight>>>>,
}

#[derive(Default)]
struct Flight {
    over: bool,
    failure: Option<Error>,
    waiting: Vec<Waker>,
}

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self {
            under_way: RefCell::default(),
        }
    }
}

impl<K: Hash + Eq + Clone> Flights<K> {
    /// Looks by `look`, and fetches by `fetch` what is not there, once for all who ask at the same time.
    pub(crate) async fn get<T, F>(
        &self,
        id: &K,
        mut look: impl FnMut() -> Option<T>,
        fetch: impl FnOnce() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            let present = self.under_way.borrow().get(id).cloned();
            let Some(flight) = present else {
                let lead = Lead::new(self, id);
                let outcome = fetch().await;
                lead.flight.borrow_mut().failure = outcome.as_ref().err().cloned();
                return outcome;
            };
            poll_fn(|task| {
                let mut flight = flight.borrow_mut();
                if flight.over {
                    return Poll::Ready(());
                }
                if !flight
                    .waiting
                    .iter()
                    .any(|held| held.will_wake(task.waker()))
                {
                    flight.waiting.push(task.waker().clone());
                }
                Poll::Pending
            })
            .await;
            if let Some(failure) = &flight.borrow().failure {
                return Err(failure.clone());
            }
        }
    }
}

/// The one that does the work; its end, however it comes, ends the flight.
struct Lead<'a, K: Hash + Eq + Clone> {
    flights: &'a Flights<K>,
    id: K,
    flight: Rc<RefCell<Flight>>,
}

impl<'a, K: Hash + Eq + Clone> Lead<'a, K> {
    fn new(flights: &'a Flights<K>, id: &K) -> Self {
        let flight = Rc::new(RefCell::new(Flight::default()));
        let earlier = flights
            .under_way
            .borrow_mut()
            .insert(id.clone(), Rc::clone(&flight));
        assert!(earlier.is_none(), "a flight has one leader");
        Self {
            flights,
            id: id.clone(),
            flight,
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for Lead<'_, K> {
    fn drop(&mut self) {
        self.flights.under_way.borrow_mut().remove(&self.id);
        let waiting = {
            let mut flight = self.flight.borrow_mut();
            flight.over = true;
            std::mem::take(&mut flight.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use futures_util::future::{LocalBoxFuture, join_all};
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::Context;

    /// What is fetched, once `open` is set.
    #[derive(Default)]
    struct Store {
        held: Cell<Option<u32>>,
        fetched: Cell<u32>,
        open: Cell<bool>,
        fails: Cell<bool>,
        wakers: RefCell<Vec<Waker>>,
    }

    impl Store {
        fn set_open(&self) {
            self.open.set(true);
            self.wakers.borrow_mut().drain(..).for_each(Waker::wake);
        }

        async fn fetch(&self) -> Result<u32, Error> {
            self.fetched.set(self.fetched.get() + 1);
            poll_fn(|task| {
                if self.open.get() {
                    return Poll::Ready(());
                }
                self.wakers.borrow_mut().push(task.waker().clone());
                Poll::Pending
            })
            .await;
            if self.fails.get() {
                return Err(Error::unreachable("down"));
            }
            self.held.set(Some(7));
            Ok(7)
        }
    }

    fn ask<'a>(
        flights: &'a Flights<u8>,
        store: &'a Store,
    ) -> LocalBoxFuture<'a, Result<u32, Error>> {
        async move { flights.get(&1, || store.held.get(), || store.fetch()).await }.boxed_local()
    }

    fn poll<T>(future: &mut LocalBoxFuture<'_, T>) -> Poll<T> {
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn many_ask_and_one_fetches() {
        let (flights, store) = (Flights::default(), Store::default());
        let mut all = join_all((0..100).map(|_| ask(&flights, &store))).boxed_local();
        assert!(poll(&mut all).is_pending());
        store.set_open();
        let mut all = pin!(all);
        let answers = loop {
            if let Poll::Ready(answers) = all.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                break answers;
            }
        };
        assert!(answers.into_iter().all(|answer| answer.ok() == Some(7)));
        assert_eq!(store.fetched.get(), 1);
        assert!(flights.under_way.borrow().is_empty());
    }

    #[test]
    fn a_failure_is_everybodys() {
        let (flights, store) = (Flights::default(), Store::default());
        store.fails.set(true);
        let mut all: Vec<_> = (0..5).map(|_| ask(&flights, &store)).collect();
        for one in &mut all {
            assert!(poll(one).is_pending());
        }
        store.set_open();
        for one in &mut all {
            assert!(matches!(poll(one), Poll::Ready(Err(_))));
        }
        assert_eq!(store.fetched.get(), 1);
        // And nobody else's.
        store.fails.set(false);
        assert!(matches!(
            poll(&mut ask(&flights, &store)),
            Poll::Ready(Ok(7))
        ));
    }

    #[test]
    fn who_waits_goes_on_when_the_leader_goes_away() {
        let (flights, store) = (Flights::default(), Store::default());
        let mut leader = ask(&flights, &store);
        let mut next = ask(&flights, &store);
        assert!(poll(&mut leader).is_pending());
        assert!(poll(&mut next).is_pending());
        drop(leader);
        assert!(poll(&mut next).is_pending());
        assert_eq!(store.fetched.get(), 2);
        store.set_open();
        assert!(matches!(poll(&mut next), Poll::Ready(Ok(7))));
        assert!(flights.under_way.borrow().is_empty());
    }
}
