//! Tasks, timers, clock and random bytes of a simulated machine: one thread, virtual time, and a seed that says who runs next.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::{World, here, world};
use crate::error::Error;
use crate::index::commit::Committer;
use crate::segment::reclaim::Reclaimer;

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
pub struct Executor {
    tasks: RefCell<BTreeMap<u64, Boxed>>,
    next: Cell<u64>,
    ready: Arc<Mutex<Vec<u64>>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    committer: RefCell<Option<Committer>>,
    reclaimer: RefCell<Option<Reclaimer>>,
    /// Until when these are busy; and when the reclaimer looks again by itself.
    committer_busy: Cell<Duration>,
    reclaimer_busy: Cell<Duration>,
    reclaimer_due: Cell<Duration>,
}

impl Executor {
    /// Everything that runs ends.
    pub fn clear(&self) {
        // What is dropped may begin something new.
        while let Some((_, task)) = self.pop() {
            drop(task);
        }
        drop(self.committer.take());
        drop(self.reclaimer.take());
        self.timers.take();
        self.queue().clear();
    }

    fn pop(&self) -> Option<(u64, Boxed)> {
        self.tasks.borrow_mut().pop_first()
    }

    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Gives the store's threads to the machine.
    pub fn start(&self, committer: Committer, reclaimer: Reclaimer) {
        let e = &self.executor;
        e.committer.replace(Some(committer));
        e.reclaimer.replace(Some(reclaimer));
        e.reclaimer_due.set(self.now.get());
    }

    /// Runs everything until `main` is done; none where the machine stopped before.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> Option<T> {
        let task = spawn(main);
        loop {
            if self.is_down() {
                return None;
            }
            if let Some(done) = task.0.borrow_mut().value.take() {
                return Some(done);
            }
            self.step();
        }
    }

    fn step(&self) {
        let e = &self.executor;
        let now = self.now.get();
        let ready = e.queue().len() as u64;
        let (committer, reclaimer) = (self.committer_at(), self.reclaimer_at());
        let commits = u64::from(committer.is_some_and(|at| at <= now));
        let reclaims = u64::from(reclaimer.is_some_and(|at| at <= now));
        if ready + commits + reclaims == 0 {
            let timer = e.timers.borrow().keys().next().map(|(at, _)| *at);
            let next = [timer, committer, reclaimer].into_iter().flatten().min();
            self.now.set(next.expect("something is to happen").max(now));
            return self.fire();
        }
        let choice = self.below(ready + commits + reclaims);
        if choice < ready {
            let id = e.queue().swap_remove(choice as usize);
            self.poll(id);
        } else if choice < ready + commits {
            self.commit_turn();
        } else {
            self.reclaim_turn();
        }
    }

    fn poll(&self, id: u64) {
        let e = &self.executor;
        let Some(mut task) = e.tasks.borrow_mut().remove(&id) else {
            return;
        };
        let waker = Waker::from(Arc::new(TaskWaker {
            id,
            ready: Arc::clone(&e.ready),
        }));
        if task
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            e.tasks.borrow_mut().insert(id, task);
        }
    }

    fn fire(&self) {
        let mut timers = self.executor.timers.borrow_mut();
        while let Some(first) = timers.first_entry() {
            if first.key().0 > self.now.get() {
                return;
            }
            first.remove().wake();
        }
    }

    fn committer_at(&self) -> Option<Duration> {
        let committer = self.executor.committer.borrow();
        let committer = committer.as_ref()?;
        let busy = self.executor.committer_busy.get();
        Some(match committer.requests.is_empty() {
            true => busy.max(committer.checkpoint_due - self.epoch),
            false => busy,
        })
    }

    fn commit_turn(&self) {
        let e = &self.executor;
        let mut committer = e.committer.borrow_mut();
        let Some(running) = committer.as_mut() else {
            return;
        };
        let first = running.requests.try_recv().ok();
        match running.turn(first) {
            Ok(true) => {}
            Ok(false) => *committer = None,
            Err(e) => self.end(&e),
        }
        e.committer_busy.set(self.now.get() + self.latency());
    }

    fn reclaimer_at(&self) -> Option<Duration> {
        let reclaimer = self.executor.reclaimer.borrow();
        let busy = self.executor.reclaimer_busy.get();
        Some(match reclaimer.as_ref()?.messages.is_empty() {
            true => busy.max(self.executor.reclaimer_due.get()),
            false => busy,
        })
    }

    fn reclaim_turn(&self) {
        let e = &self.executor;
        let mut reclaimer = e.reclaimer.borrow_mut();
        let Some(running) = reclaimer.as_mut() else {
            return;
        };
        let first = running.messages.try_recv().ok();
        if running.turn(first) {
            let now = self.now.get();
            e.reclaimer_due.set(now + running.patience());
            e.reclaimer_busy.set(now + self.latency());
        } else {
            *reclaimer = None;
        }
    }

    /// Waits for the store's threads to end, which have been told to.
    pub fn join(&self) {
        let e = &self.executor;
        while !self.is_down() && e.reclaimer.borrow().is_some() {
            self.reclaim_turn();
        }
    }

    pub fn join_committer(&self) {
        while !self.is_down() && self.executor.committer.borrow().is_some() {
            self.commit_turn();
        }
    }
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&self.id) {
            ready.push(self.id);
        }
    }
}

/// A task's value, once it is there.
pub struct Task<T>(Rc<RefCell<Slot<T>>>);

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.0.borrow_mut();
        match slot.value.take() {
            Some(value) => Poll::Ready(Some(value)),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    let slot = Rc::new(RefCell::new(Slot {
        value: None,
        waker: None,
    }));
    let filled = Rc::clone(&slot);
    let task = async move {
        let value = future.await;
        let mut slot = filled.borrow_mut();
        slot.value = Some(value);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    };
    let world = here();
    let e = &world.executor;
    let id = e.number();
    e.tasks.borrow_mut().insert(id, Box::pin(task));
    e.queue().push(id);
    Task(slot)
}

pub fn sleep(time: Duration) -> Sleep {
    let world = here();
    Sleep {
        at: (world.now.get() + time, world.executor.number()),
        world,
    }
}

pub struct Sleep {
    at: (Duration, u64),
    world: Rc<World>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.now.get() >= self.at.0 {
            return Poll::Ready(());
        }
        let mut timers = self.world.executor.timers.borrow_mut();
        timers.insert(self.at, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.world.executor.timers.borrow_mut().remove(&self.at);
    }
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    sleep(here().latency()).await;
    work()
}

/// What the engine calls when nothing may be acknowledged any more: the process is gone.
pub fn fatal(error: &Error) {
    here().end(error);
}

/// Waits for the committer, on what is the reclaimer's thread otherwise.
pub fn block_on<T>(
    future: impl Future<Output = Result<T, futures_channel::oneshot::Canceled>>,
) -> Result<T, Error> {
    let world = here();
    let mut future = pin!(future);
    loop {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(done) => return done.map_err(|_| Error::Closed),
            Poll::Pending if world.is_down() => return Err(Error::Closed),
            Poll::Pending => world.commit_turn(),
        }
    }
}

pub fn now() -> Instant {
    match world() {
        Some(world) => world.epoch + world.now.get(),
        None => Instant::now(),
    }
}

/// The simulation begins at the same moment each time.
pub fn unix_millis() -> u64 {
    1_800_000_000_000 + world().map_or(0, |world| world.now.get().as_millis() as u64)
}

pub fn random(out: &mut [u8]) {
    match world() {
        Some(world) => world.rng.borrow_mut().fill(out),
        None => getrandom::fill(out).expect("the operating system gives random bytes"),
    }
}
