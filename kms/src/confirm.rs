//! Which keys of KES are in use, when it last let this server use each, and what to ask to know it again.
//!
//! KES tells nobody when a key is deleted or a policy changed. So a key whose data keys are in use anywhere,
//! in a cache or a stream, has to be confirmed within the time that a data key is good for: any answer that
//! yields a data key under it does, and where none is asked for, the same question as before is put again.
//! One question for a key is enough for all its streams, because KES allows or refuses by the key's name.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A question that KES answered with a data key.
#[derive(Clone)]
pub(crate) enum Question {
    Decrypt {
        ciphertext: Vec<u8>,
        context: Vec<u8>,
    },
    /// Asked again only where nothing was opened yet: a server may be allowed to make data keys and not to
    /// open them.
    Generate { context: Vec<u8> },
}

struct Confirmed {
    at: Instant,
    by: Question,
}

/// What KES confirmed, for all cores.
#[derive(Default)]
pub(crate) struct Confirmations {
    keys: Mutex<HashMap<String, Confirmed>>,
    answered: Mutex<Option<Instant>>,
}

impl Confirmations {
    /// KES let this server use a key.
    pub(crate) fn confirm(&self, name: &str, by: Question, at: Instant) {
        let mut keys = self.keys();
        let by = match (by, keys.remove(name)) {
            (Question::Generate { .. }, Some(held)) => held.by,
            (by, _) => by,
        };
        keys.insert(name.to_owned(), Confirmed { at, by });
    }

    /// KES answered something.
    pub(crate) fn note_answer(&self, at: Instant) {
        *self.answered() = Some(at);
    }

    /// When KES last answered.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        *self.answered()
    }

    /// Forgets the keys that `keep` does not want.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.keys().retain(|name, _| keep(name));
    }

    /// Calls `each` with the keys that were not confirmed for `age`, while nobody confirms any.
    pub(crate) fn older_than(
        &self,
        age: Duration,
        now: Instant,
        mut each: impl FnMut(&str, &Question),
    ) {
        for (name, held) in self.keys().iter() {
            if now.saturating_duration_since(held.at) >= age {
                each(name, &held.by);
            }
        }
    }

    /// KES let this server use a key no more.
    pub(crate) fn forget(&self, name: &str) {
        self.keys().remove(name);
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<String, Confirmed>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_is_asked_again_and_what_was_made_only_otherwise() {
        let all = Confirmations::default();
        let start = Instant::now();
        let generate = || Question::Generate {
            context: b"{}".to_vec(),
        };
        all.confirm("k", generate(), start);
        let decrypt = Question::Decrypt {
            ciphertext: vec![1],
            context: vec![2],
        };
        all.confirm("k", decrypt, start);
        all.confirm("k", generate(), start + Duration::from_secs(1));
        all.confirm("other", generate(), start + Duration::from_secs(5));
        let late = start + Duration::from_secs(11);
        let due = |age| {
            let mut due = Vec::new();
            all.older_than(age, late, |name, by| {
                let opened = matches!(by, Question::Decrypt { .. });
                due.push((name.to_owned(), opened));
            });
            due
        };
        assert_eq!(due(Duration::from_secs(10)), [("k".to_owned(), true)]);
        all.retain(|name| name == "other");
        assert_eq!(due(Duration::ZERO), [("other".to_owned(), false)]);
        all.forget("other");
        assert!(due(Duration::ZERO).is_empty());
    }
}
