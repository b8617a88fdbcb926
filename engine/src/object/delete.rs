//! Delete: the record first, durably; the space afterwards, once nobody reads it.

use super::Condition;
use super::put::check_key;
use crate::error::Result;
use crate::index::commit::Op;
use crate::shard::Shard;

impl Shard {
    /// Deletes an object; false where there was none.
    pub async fn delete(&self, bucket: &str, key: &str, condition: &Condition) -> Result<bool> {
        check_key(key)?;
        let op = Op::Delete {
            bucket: bucket.into(),
            key: key.into(),
            condition: condition.clone(),
        };
        Ok(self.commit(op).await?.is_some())
    }
}
