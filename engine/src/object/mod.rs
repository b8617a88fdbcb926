//! The verbs on objects, one a file: the order of steps of each.

mod delete;
mod encryption;
mod get;
mod list;
mod multipart;
mod put;

pub use encryption::{WrappedCursor, WrappedEntry, WrappedPage, WrappedQuery};
pub use get::{Found, GetStream};
pub use list::{ListEntry, ListPage, ListQuery, UploadEntry, UploadPage, UploadQuery};
pub use multipart::{Completion, NewUpload, PartChoice, PartEntry};
pub use put::{Finish, PutStream, Target};

/// What a conditional write asks of the object it meets. ETags are compared without quotes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    pub if_match: Option<EtagMatch>,
    pub if_none_match: Option<EtagMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagMatch {
    /// `*`
    Any,
    Tags(Vec<String>),
}

impl EtagMatch {
    pub fn matches(&self, etag: &str) -> bool {
        match self {
            EtagMatch::Any => true,
            EtagMatch::Tags(tags) => tags.iter().any(|t| t == etag),
        }
    }
}

/// What a write left: returned once it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Milliseconds since 1970, as recorded.
    pub modified: u64,
    /// The commit sequence of the record.
    pub sequence: u64,
}
