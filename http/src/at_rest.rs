//! A store that no server has open, opened by a command for as long as it runs. The command holds the directories' locks.

use std::path::PathBuf;
use std::sync::Arc;

use glommio::{LocalExecutorBuilder, Placement};
use strongroom_engine::secret::Secret;
use strongroom_engine::{DataDirs, Usage, tally_at_rest};

use crate::rewrap::Objects;
use crate::{limits, serve, work};

/// What stands under each key.
pub fn tally(dirs: &DataDirs, key: &Secret) -> Result<Objects, String> {
    tally_at_rest(dirs, key)
        .map(Objects::AtRest)
        .map_err(|e| e.to_string())
}

/// What each drive holds and takes; none of those that are missing.
pub fn usage(dirs: &DataDirs, key: &Secret) -> Result<Vec<(PathBuf, Option<Usage>)>, String> {
    let engines = serve::open_engines(dirs, key, 1, 0)?;
    let usage = engines.observers().each().map_err(|e| e.to_string());
    engines.close();
    usage
}

/// Opens the store, calls `with` on its objects, and closes it.
pub fn with_objects<T>(
    dirs: &DataDirs,
    key: &Secret,
    with: impl FnOnce(Arc<Objects>) -> T,
) -> Result<T, String> {
    let cores = serve::shard_cores(None);
    let engines = serve::open_engines(dirs, key, cores.len(), 0)?;
    let (shards, inboxes) = work::channels(cores.len());
    let mut running = Vec::new();
    for (id, (inbox, core)) in inboxes.into_iter().zip(cores).enumerate() {
        let seed = engines.shard(id);
        let shard = LocalExecutorBuilder::new(Placement::Fixed(core))
            .name(&format!("shard-{id}"))
            .io_memory(limits::RING_MEMORY_BYTES)
            .spawn(move || async move {
                let drives = seed.open().await?;
                inbox.work(drives.clone(), std::future::pending()).await;
                drives.close().await;
                strongroom_engine::end_blocking().await;
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
    engines.close();
    Ok(done)
}
