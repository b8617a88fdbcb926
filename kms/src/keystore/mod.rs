//! The embedded keystore: many named, versioned keys in one sealed file that is replaced as a whole.
//!
//! [`book`] is what it holds, [`files`] how that lies on disk.

pub(crate) mod book;
pub(crate) mod files;
