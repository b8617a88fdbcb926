//! The threads that serve, one pinned to each core. They listen for as long as the process lives, whether a store is open or not:
//! while none is, every request is told why.
//!
//! A store is opened on all of them and closed again by orders of the main thread, which waits until each was carried out. The
//! keys of a core are its own and stay.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_lite::future::or;
use futures_util::{FutureExt as _, StreamExt as _};
use glommio::task::JoinHandle;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use rustls::ServerConfig;
use strongroom_engine::{Drives, DrivesSeed, Engines};
use strongroom_kms::Keys;

use crate::conn::{self, Drain};
use crate::key_service::KeyService;
use crate::key_work::{self, AskKeys, Asked};
use crate::service::{KmsApi, Service, Settings};
use crate::work::Inbox;
use crate::{limits, ops};

/// What every core is told once.
pub struct Plan {
    pub ops: ops::Config,
    pub settings: Settings,
    pub tls: Option<Arc<ServerConfig>>,
    pub stale_uploads: Duration,
}

/// All threads that serve, seen from the main thread.
pub struct Cores(Vec<Core>);

struct Core {
    orders: UnboundedSender<Order>,
    stopped: mpsc::Receiver<()>,
}

enum Order {
    /// The key service is known. `asked` is what other threads want of the keys.
    Keys {
        service: Arc<KeyService>,
        asked: Option<Asked>,
    },
    Open {
        seed: DrivesSeed,
        inbox: Inbox,
        done: mpsc::Sender<Result<(), String>>,
    },
    Close {
        done: mpsc::Sender<()>,
    },
    Stop,
}

impl Cores {
    /// Begins to listen: from now on every request is answered.
    pub fn start(
        plan: &Arc<Plan>,
        listeners: Vec<TcpListener>,
        cores: &[usize],
    ) -> Result<Cores, String> {
        let mut running = Vec::new();
        for (id, (listener, core)) in listeners.into_iter().zip(cores).enumerate() {
            let (orders, taken) = unbounded();
            let (started, starting) = mpsc::channel();
            let (stopped_sender, stopped) = mpsc::channel();
            let plan = Arc::clone(plan);
            LocalExecutorBuilder::new(Placement::Fixed(*core))
                .name(&format!("shard-{id}"))
                .io_memory(limits::RING_MEMORY_BYTES)
                .blocking_thread_pool_placement(PoolPlacement::Unbound(limits::HELPER_THREADS))
                .spin_before_park(Duration::ZERO)
                .spawn(move || async move {
                    // The main thread waits for just this.
                    let _ = started.send(());
                    serve(id, plan, listener, taken).await;
                    let _ = stopped_sender.send(());
                })
                .map_err(|e| {
                    format!("shard {id} cannot start: {e} (if memory cannot be locked, raise `ulimit -l`; if rings are forbidden, allow io_uring)")
                })?;
            starting
                .recv()
                .map_err(|_| format!("shard {id} ended while starting"))?;
            running.push(Core { orders, stopped });
        }
        Ok(Cores(running))
    }

    /// Gives each core keys of its own. Returns the way to those of core 0.
    pub fn give_keys(&self, service: &Arc<KeyService>) -> AskKeys {
        let (ask, asked) = key_work::channel();
        let mut asked = Some(asked);
        for core in &self.0 {
            core.order(Order::Keys {
                service: Arc::clone(service),
                asked: asked.take(),
            });
        }
        ask
    }

    /// Opens a store on every core; from then on it is served.
    pub fn open(&self, engines: &Engines, inboxes: Vec<Inbox>) -> Result<(), String> {
        let mut opening = Vec::new();
        for (id, (core, inbox)) in self.0.iter().zip(inboxes).enumerate() {
            let (done, opened) = mpsc::channel();
            core.order(Order::Open {
                seed: engines.shard(id),
                inbox,
                done,
            });
            opening.push(opened);
        }
        for (id, opened) in opening.into_iter().enumerate() {
            match opened.recv() {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return Err(format!("shard {id} cannot start: {reason}")),
                Err(_) => return Err(format!("shard {id} ended while starting")),
            }
        }
        Ok(())
    }

    /// Closes the store on every core: when this returns nothing of it is served any more. Commits under way are carried out;
    /// requests that wait for anything else are broken off.
    pub fn close(&self) {
        let mut closing = Vec::new();
        for core in &self.0 {
            let (done, closed) = mpsc::channel();
            core.order(Order::Close { done });
            closing.push(closed);
        }
        for closed in closing {
            // A core that has ended serves nothing.
            let _ = closed.recv();
        }
    }

    /// Takes no new requests, and gives those under way so much time.
    pub fn stop(self, limit: Duration) {
        let end = Instant::now() + limit;
        self.0.iter().for_each(|core| core.order(Order::Stop));
        for core in self.0 {
            let left = end.saturating_duration_since(Instant::now());
            if let Err(mpsc::RecvTimeoutError::Timeout) = core.stopped.recv_timeout(left) {
                tracing::warn!("requests still under way after {limit:?} are cut off");
            }
        }
    }
}

impl Core {
    fn order(&self, order: Order) {
        // A core that ended by itself needs no telling.
        let _ = self.orders.unbounded_send(order);
    }
}

/// The life of one thread.
async fn serve(
    id: usize,
    plan: Arc<Plan>,
    listener: TcpListener,
    mut orders: UnboundedReceiver<Order>,
) {
    let drain = Drain::new();
    let service = Service::new(plan.settings.clone());
    let mut here = Here {
        id,
        plan: Arc::clone(&plan),
        service: service.clone(),
        keys: None,
        store: None,
    };
    let obeying = async {
        // A main thread that is gone means a stop.
        while let Some(order) = orders.next().await {
            match order {
                Order::Keys { service, asked } => here.take_keys(service, asked),
                Order::Open { seed, inbox, done } => {
                    let _ = done.send(here.open(seed, inbox).await);
                }
                Order::Close { done } => {
                    here.close().await;
                    let _ = done.send(());
                }
                Order::Stop => break,
            }
        }
        drain.begin();
        if let Some(store) = &mut here.store {
            store.end_work().await;
        }
    };
    let serving = conn::serve(
        listener,
        conn::Shard {
            tls: plan.tls.clone(),
            drain: drain.clone(),
            make: move |peer| service.for_peer(peer),
        },
    );
    futures_util::future::join(serving, obeying).await;
    drain.below(1).await;
    here.close().await;
    strongroom_engine::end_blocking().await;
}

/// What a core has.
struct Here {
    id: usize,
    plan: Arc<Plan>,
    service: Service,
    keys: Option<(Rc<Keys>, Arc<KeyService>)>,
    store: Option<OpenStore>,
}

struct OpenStore {
    drives: Rc<Drives>,
    operations: ops::Store,
    /// Ends `work`.
    stop: Option<oneshot::Sender<()>>,
    work: Option<JoinHandle<()>>,
}

impl Here {
    fn take_keys(&mut self, service: Arc<KeyService>, asked: Option<Asked>) {
        let keys = Rc::new(service.keys());
        self.keys = Some((Rc::clone(&keys), Arc::clone(&service)));
        let id = self.id;
        if let Some(asked) = asked {
            glommio::spawn_local(asked.answer(Rc::clone(&keys))).detach();
        }
        glommio::spawn_local(async move { service.tend(&keys, id).await }).detach();
    }

    async fn open(&mut self, seed: DrivesSeed, inbox: Inbox) -> Result<(), String> {
        let (keys, service) = self.keys.clone().ok_or("it has no keys")?;
        let drives = seed.open().await.map_err(|e| e.to_string())?;
        let operations = ops::Store::new(drives.clone(), Rc::clone(&keys), self.plan.ops.clone());
        let (stop, stopping) = oneshot::channel::<()>();
        let stopping = stopping.map(drop).shared();
        let work = {
            let (drives, downloads) = (Rc::clone(&drives), operations.clone());
            let (first, age) = (self.id == 0, self.plan.stale_uploads);
            async move {
                let stale = async {
                    if first {
                        abort_stale_uploads(&drives, age).await;
                    }
                };
                futures_util::future::join3(
                    inbox.work(Rc::clone(&drives), stopping.clone()),
                    or(downloads.watch_downloads(), stopping.clone()),
                    or(stale, stopping.clone()),
                )
                .await;
            }
        };
        self.service.open(
            operations.clone(),
            operations.routes(),
            Some(KmsApi::new(Arc::clone(service.kms()), keys)),
        );
        self.store = Some(OpenStore {
            drives,
            operations,
            stop: Some(stop),
            work: Some(glommio::spawn_local(work).detach()),
        });
        Ok(())
    }

    async fn close(&mut self) {
        self.service.close();
        let Some(mut store) = self.store.take() else {
            return;
        };
        store.operations.end_downloads();
        store.end_work().await;
        let OpenStore {
            drives, operations, ..
        } = store;
        drop(operations);
        // Requests end when they are polled next, commits when they are durable.
        let end = Instant::now() + limits::CLOSE_PATIENCE;
        while !drives.is_idle() {
            if Instant::now() >= end {
                tracing::warn!("requests still hold the store that is to be closed");
                return;
            }
            glommio::timer::sleep(limits::CLOSE_LOOK).await;
        }
        drives.close().await;
    }
}

impl OpenStore {
    /// Finishes what others handed over.
    async fn end_work(&mut self) {
        drop(self.stop.take());
        if let Some(work) = self.work.take() {
            work.await;
        }
    }
}

async fn abort_stale_uploads(drives: &Drives, age: Duration) {
    loop {
        match drives.abort_stale_uploads(age).await {
            Ok(0) => {}
            Ok(n) => tracing::info!("aborted {n} multipart uploads that nobody completed"),
            Err(e) => tracing::warn!("looking for stale multipart uploads: {e}"),
        }
        glommio::timer::sleep(limits::STALE_UPLOADS_POLL).await;
    }
}
