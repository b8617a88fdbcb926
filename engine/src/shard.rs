//! One core's share of the engine: its writer, its open files, its readers' holds.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Core;
use crate::error::{Error, Result};
use crate::index::commit::{Op, Reply};
use crate::io::disk;
use crate::limits;
use crate::object::Committed;
use crate::permits::Permits;
use crate::record::{Bucket, BucketEncryption};
use crate::rt;
use crate::segment::reader::Files;
use crate::segment::writer::Writer;

/// The engine on one core. All of its futures stay on this core.
pub struct Shard {
    pub(crate) core: Arc<Core>,
    pub(crate) id: usize,
    pub(crate) writer: Rc<Writer>,
    pub(crate) files: Rc<Files>,
    pub(crate) downloads: Rc<Permits>,
    pub(crate) closing: Cell<bool>,
}

impl Shard {
    pub(crate) async fn open(core: Arc<Core>, id: usize) -> Result<Rc<Shard>> {
        disk::warm_up(&core.superblock).await?;
        let shard = Rc::new(Shard {
            writer: Rc::new(Writer::new(Arc::clone(&core), id)),
            files: Rc::new(Files::new(Arc::clone(&core), id)),
            downloads: Permits::new(limits::DOWNLOADS_PER_SHARD),
            closing: Cell::new(false),
            core,
            id,
        });
        // One shard is enough, and rounds follow each other.
        if id == 0 {
            rt::spawn(Shard::keep_copying(Rc::downgrade(&shard)));
        }
        Ok(shard)
    }

    /// Copies what is not copied yet, and gives back space reserved ahead. Call it once no request is under way any more.
    pub async fn close(self: &Rc<Self>) {
        self.closing.set(true);
        if self.id == 0
            && let Err(e) = self.copy_index(false).await
        {
            tracing::warn!("the index could not be copied to segments: {e}");
        }
        self.writer.close().await;
    }

    pub fn bucket(&self, name: &str) -> Result<Arc<Bucket>> {
        self.core.index.bucket(name)
    }

    /// All buckets, by name.
    pub fn buckets(&self) -> Vec<Arc<Bucket>> {
        self.core.index.buckets().values().cloned().collect()
    }

    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.core.take_space(limits::INDEX_RECORD_BYTES)?;
        let op = Op::CreateBucket { name: name.into() };
        self.commit(op).await.map(|_| ())
    }

    /// Makes the bucket as it is on another drive, or makes it the same.
    pub(crate) async fn put_bucket(&self, bucket: Bucket) -> Result<()> {
        self.core.take_space(limits::INDEX_RECORD_BYTES)?;
        self.commit(Op::PutBucket { bucket }).await.map(|_| ())
    }

    /// Sets a bucket's default, or takes it away; where `to` says nothing of blocked modes they stay as they are.
    pub async fn set_bucket_encryption(
        &self,
        name: &str,
        to: Option<BucketEncryption>,
    ) -> Result<()> {
        let name = name.into();
        self.commit(Op::SetBucketEncryption { name, to })
            .await
            .map(|_| ())
    }

    /// Deletes an empty bucket; uploads still open in it are aborted.
    pub async fn delete_bucket(&self, name: &str) -> Result<()> {
        let op = Op::DeleteBucket { name: name.into() };
        self.commit(op).await.map(|_| ())
    }

    /// Hands an operation to the committer and waits until it is durable.
    pub(crate) async fn commit(&self, op: Op) -> Reply {
        if self.core.reclaim_backlog() > limits::RECLAIM_BACKLOG_MAX {
            let room = async {
                while self.core.reclaim_backlog() > limits::RECLAIM_BACKLOG_MAX {
                    rt::sleep(limits::BACKLOG_LOOK_EVERY).await;
                }
            };
            within(limits::SLOT_WAIT, room)
                .await
                .ok_or(Error::Overloaded {
                    what: "space is freed faster than it is given back",
                })?;
        }
        self.core.check_index_space()?;
        self.core.commit(op)?.await.map_err(|_| Error::Closed)?
    }

    pub(crate) async fn commit_some(&self, op: Op) -> Result<Committed> {
        Ok(self
            .commit(op)
            .await?
            .expect("this operation always does something"))
    }

    /// Runs something that may block on a helper thread.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = Arc::clone(&self.core);
        rt::blocking(move || work(&core)).await
    }
}

/// Carries something out to its end, also when the caller goes away.
pub(crate) async fn to_end<T: 'static>(
    work: impl Future<Output = Result<T>> + 'static,
) -> Result<T> {
    rt::spawn(work).await.ok_or(Error::Closed)?
}

/// The future's value, or none when it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    futures_lite::future::or(async { Some(future.await) }, async {
        rt::sleep(limit).await;
        None
    })
    .await
}
