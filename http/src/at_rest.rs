//! A store that no server has open, opened by a command for as long as it runs. The command holds the directory's lock.

use std::sync::Arc;

use glommio::{LocalExecutorBuilder, Placement};
use strongroom_engine::secret::Secret;
use strongroom_engine::{DataDir, Usage, tally_at_rest};

use crate::rewrap::Objects;
use crate::{limits, serve, work};

/// What stands under each key.
pub fn tally(dir: &DataDir, key: &Secret) -> Result<Objects, String> {
    tally_at_rest(dir, key)
        .map(Objects::AtRest)
        .map_err(|e| e.to_string())
}

/// What the store holds and takes.
pub fn usage(dir: &DataDir, key: &Secret) -> Result<Usage, String> {
    let engine = serve::open_engine(dir, key, 1, 0)?;
    let usage = engine.usage().map_err(|e| e.to_string());
    engine.close();
    usage
}

/// Opens the store, calls `with` on its objects, and closes it.
pub fn with_objects<T>(
    dir: &DataDir,
    key: &Secret,
    with: impl FnOnce(Arc<Objects>) -> T,
) -> Result<T, String> {
    let cores = serve::shard_cores(None);
    let engine = serve::open_engine(dir, key, cores.len(), 0)?;
    let (shards, inboxes) = work::channels(cores.len());
    let mut running = Vec::new();
    for (id, (inbox, core)) in inboxes.into_iter().zip(cores).enumerate() {
        let seed = engine.shard(id);
        let shard = LocalExecutorBuilder::new(Placement::Fixed(core))
            .name(&format!("shard-{id}"))
            .io_memory(limits::RING_MEMORY_BYTES)
            .spawn(move || async move {
                let shard = seed.open().await?;
                inbox.work(shard.clone(), std::future::pending()).await;
                shard.close().await;
                Ok(())
            });
        running.push(shard.map_err(|e| format!("shard {id} cannot start: {e}"))?);
    }
    // The shards end when nobody can hand them work any more.
    let done = with(Arc::new(Objects::Served(shards)));
    for shard in running {
        shard
            .join()
            .map_err(|e| format!("a shard ended: {e}"))?
            .map_err(|e: strongroom_engine::Error| e.to_string())?;
    }
    engine.close();
    Ok(done)
}
