//! Downloads under way, each in a place from which it can be dropped.
//!
//! A client that does not read keeps its response waiting, and with it the object's key in memory. What pulls the response is not
//! asked meanwhile, so a task looks at all of a core's downloads now and then, and drops those whose key is gone. When the store is
//! locked they are all dropped.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use s3s::StdError;
use strongroom_kms::KeyLease;

use crate::error::{At, OrS3};

/// The data of one response, bound to this thread.
pub type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, StdError>>>>;

/// The downloads of one core.
#[derive(Default)]
pub struct Downloads(Rc<RefCell<Places>>);

#[derive(Default)]
struct Places {
    next: u64,
    held: HashMap<u64, Weak<Place>>,
}

/// Where a download is until it ends, or its key does.
struct Place {
    frames: RefCell<Option<Frames>>,
    /// Of an object whose key is the key service's.
    lease: Option<KeyLease>,
}

impl Place {
    fn check(&self) -> Result<(), strongroom_kms::Error> {
        self.lease.as_ref().map_or(Ok(()), KeyLease::check)
    }
}

/// One download.
pub struct Download {
    place: Rc<Place>,
    id: u64,
    places: Rc<RefCell<Places>>,
    bucket: String,
    key: String,
}

impl Downloads {
    /// Takes a download in, for as long as its key stands.
    pub fn begin(
        &self,
        frames: Frames,
        lease: Option<KeyLease>,
        bucket: String,
        key: String,
    ) -> Download {
        let place = Rc::new(Place {
            frames: RefCell::new(Some(frames)),
            lease,
        });
        let mut places = self.0.borrow_mut();
        let id = places.next;
        places.next += 1;
        places.held.insert(id, Rc::downgrade(&place));
        Download {
            place,
            id,
            places: Rc::clone(&self.0),
            bucket,
            key,
        }
    }

    /// Drops the downloads whose key is gone.
    pub fn sweep(&self) {
        self.end(|place| place.check().is_err());
    }

    /// Drops them all.
    pub fn end_all(&self) {
        self.end(|_| true);
    }

    fn end(&self, which: impl Fn(&Place) -> bool) {
        let places: Vec<Rc<Place>> = {
            let places = self.0.borrow();
            places.held.values().filter_map(Weak::upgrade).collect()
        };
        for place in places.iter().filter(|place| which(place)) {
            drop(place.frames.borrow_mut().take());
        }
    }
}

impl Stream for Download {
    type Item = Result<Bytes, StdError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(frames) = self.place.frames.borrow_mut().as_mut() {
            return frames.as_mut().poll_next(cx);
        }
        let at = At::object(&self.bucket, &self.key);
        let gone = match self.place.check().at(at) {
            Err(fault) => fault,
            // It came back, too late for this one; or the store is locked.
            Ok(()) => s3s::s3_error!(ServiceUnavailable, "The object's key was away."),
        };
        Poll::Ready(Some(Err(gone.into())))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.places.borrow_mut().held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;
    use futures_util::StreamExt as _;
    use strongroom_kms::{Context, Kms, RootKey};

    use super::*;

    #[test]
    fn a_download_that_nobody_reads_is_dropped_with_its_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let kms = Kms::open(dir.path(), RootKey::generate()).expect("a keystore");
        kms.create_key("other").expect("made");
        let lease = |name: &str| {
            let made = block_on(kms.generate_data_key(name, &Context::default()));
            made.expect("a data key").lease
        };
        let downloads = Downloads::default();
        // What is alive as long as the stream is.
        let (held, kept) = (Rc::new(()), Rc::new(()));
        let begin = |alive: &Rc<()>, name: &str| {
            let alive = Rc::clone(alive);
            let frames = futures_util::stream::repeat_with(move || {
                let _ = &alive;
                Ok(Bytes::from_static(b"data"))
            });
            downloads.begin(Box::pin(frames), Some(lease(name)), "b".into(), "k".into())
        };
        let mut taken = begin(&held, kms.default_key());
        let mut other = begin(&kept, "other");
        downloads.sweep();
        assert!(block_on(taken.next()).expect("a frame").is_ok());
        kms.disable_key(kms.default_key()).expect("disabled");
        downloads.sweep();
        assert_eq!((Rc::strong_count(&held), Rc::strong_count(&kept)), (1, 2));
        assert!(block_on(taken.next()).expect("an error").is_err());
        assert!(block_on(other.next()).expect("a frame").is_ok());
        kms.enable_key(kms.default_key()).expect("enabled");
        assert!(block_on(taken.next()).expect("an error").is_err());
        downloads.end_all();
        assert_eq!(Rc::strong_count(&kept), 1);
        drop((taken, other));
        assert!(downloads.0.borrow().held.is_empty());
        assert_eq!(Rc::strong_count(&kept), 1);
    }
}
